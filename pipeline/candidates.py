"""Decodes and measures the candidate masks of a batch of point prompts.

Shapes: P points of a view, N points of a batch (one prompt each), R ambiguity masks per point, K candidates, h w
low-resolution logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from maskmill.filters import chain, mask_measure
from maskmill.filters.masks import MaskBatch
from maskmill.filters.regions import edit_logits
from maskmill.filters.screening import STABILITY_MARGIN
from maskmill.model.network import Network
from maskmill.model.threads import SingleCoreThreads
from maskmill.pipeline.config import GeneratorConfig
from maskmill.pipeline.point_masks import predict_masks
from maskmill.pipeline.records import StepTimer
from maskmill.pipeline.upsampling import crop_upsampling
from maskmill.pipeline.views import EncodedView

T = TypeVar("T")

# The size of the largest tensor of a batch of prompts: on a CPU about the size of the caches, on a GPU a fraction of
# its memory that leaves room for the other tensors. Larger batches launch fewer kernels.
CPU_TENSOR_BYTES = 64 * 2**20
# In smaller batches the matrix products of a CPU have too few rows.
LEAST_CPU_BATCH = 16
GPU_TENSOR_SHARE = 1 / 32


class Candidates(NamedTuple):
    """The K masks with a predicted IoU above a threshold, of the N x R ambiguity masks at N points."""

    masks: MaskBatch
    inner_boxes_K4: Tensor  # see `mask_measure.measure`; XYXY in image pixels
    predicted_iou_NR: Tensor
    chosen: tuple[Tensor, Tensor]  # (K,) each: the indices in N and R of each candidate


class PointDecoder:
    """Decodes points with one network, in batches sized for its device."""

    def __init__(
        self, network: Network, config: GeneratorConfig, threads: SingleCoreThreads, gpu_share: float = 1
    ) -> None:
        self.threads = threads
        self._sam = network
        self._config = config
        bytes_per_prompt = 4 * network.config.mask_size**2 * network.config.embed_dim // 8
        if network.device.type == "cpu":
            suitable = max(LEAST_CPU_BATCH, CPU_TENSOR_BYTES // bytes_per_prompt)
        else:
            memory = torch.cuda.get_device_properties(network.device).total_memory
            suitable = max(1, int(GPU_TENSOR_SHARE * gpu_share * memory / bytes_per_prompt))
        self._batch_size = min(suitable, config.points_per_batch or suitable)

    def map_batches(self, function: Callable[[Tensor], T], points_P2: Tensor) -> Iterator[T]:
        """The results of `function` for each batch of points, in order. Batches run in parallel threads."""
        return self.threads.map(function, points_P2.split(self._batch_size))

    def no_masks(self) -> MaskBatch:
        """An empty batch that can be concatenated with batches of this decoder."""
        return MaskBatch.empty(self._sam.config.mask_size, self._sam.device)

    def decode(
        self, encoded: EncodedView, points_N2: Tensor, iou_threshold: float, logit_margin: float, timer: StepTimer
    ) -> Candidates:
        """The candidates at one batch of points. Only masks with a predicted IoU above the threshold are computed.

        See `mask_measure.measure` for boxes and `logit_margin`.
        """
        network, device, view = self._sam, self._sam.device, encoded.view
        with timer.step("prompt", self.threads.count):
            points_N2 = points_N2.to(device, non_blocking=True)
            frame = network.config.frame(view.height, view.width)
            iou_NR, keep_NR, logits_Khw = predict_masks(
                network, self._config, encoded.embedding, frame.to_input(points_N2), iou_threshold
            )
            points_K, masks_K = keep_NR.nonzero().to(device, non_blocking=True).unbind(dim=1)
        with timer.step("filter", self.threads.count):
            if self._config.edits_logits:
                logits_Khw = edit_logits(logits_Khw, self._config.min_mask_region_area)
            if self._config.mask_threshold != 0:
                logits_Khw = logits_Khw - self._config.mask_threshold
            upsampling = crop_upsampling(network.config, view.height, view.width)
            measures = mask_measure.measure(logits_Khw, upsampling, self._config.stability_score_offset, logit_margin)
            crop_box_4 = torch.tensor(view.crop_box).to(device, non_blocking=True)
            corner_4 = crop_box_4[:2].repeat(2)
            masks = MaskBatch(
                logits=logits_Khw,
                predicted_iou=iou_NR[points_K, masks_K],
                stability_score=measures.stability_score,
                area=measures.area,
                boxes=measures.boxes + corner_4,
                points=points_N2[points_K] + crop_box_4[:2],
                crop_boxes=crop_box_4.expand(len(logits_Khw), 4),
            )
        return Candidates(masks, measures.inner_boxes + corner_4, iou_NR, (points_K, masks_K))


def mask_filters(
    encoded: EncodedView, stability_threshold: float, inner_boxes_K4: Tensor | None = None
) -> list[chain.Filter]:
    """The filters that decide on each mask of a view separately.

    Pass the `inner_boxes_K4` of `Candidates` to relax them by the error of a low-precision network.
    """
    filters = [chain.crop_edge(encoded.image_height, encoded.image_width, inner_boxes_K4)]
    if stability_threshold > 0:
        margin = 0 if inner_boxes_K4 is None else STABILITY_MARGIN
        filters.insert(0, chain.stability_score(stability_threshold - margin))
    return filters
