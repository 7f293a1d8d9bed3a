"""The engine: one image to its masks, on one device, without Ray.

Shapes: N points or candidate masks, M masks per point (the single mask first), C embedding channels, S side
of the model's input, h w low-resolution logits, H W pixels of the image.
Source: Kirillov et al. 2023, Appendix B; `SamAutomaticMaskGenerator` of segment-anything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from filters import chain, rle
from filters.boxes import masks_to_boxes, xywh_to_xyxy, xyxy_to_xywh
from filters.masks import MaskBatch
from filters.nms import nms
from filters.regions import remove_small_regions
from filters.scores import MASK_THRESHOLD, count_pixels, stability_score
from model.image_encoder import ImageEmbedding
from model.preprocess import preprocess, to_image_logits, to_input_frame
from model.sam import Sam
from pipeline.config import GeneratorConfig
from pipeline.prompts import View, plan_views
from pipeline.records import ImageMasks, StepTimer

# Logits at full resolution exist only in blocks of this many bytes, or of one mask where that is more. On a
# CPU what the caches hold: blocks of 128 MiB take three times as long. On a GPU what keeps it busy.
CPU_BLOCK_BYTES = 4 * 2**20
GPU_BLOCK_BYTES = 128 * 2**20


class MaskGenerator:
    """Finds the masks of one image after the other; keeps nothing in between."""

    def __init__(self, sam: Sam, config: GeneratorConfig) -> None:
        self.sam = sam
        self.config = config

    @torch.inference_mode()
    def generate(self, pixels_HW3: NDArray[np.uint8], timer: StepTimer) -> ImageMasks:
        """The masks of an RGB image of any size, in the order in which the published generator returns them.

        Adds to the timer's steps `encode`, `prompt`, `filter` and `rle`.
        """
        height, width = pixels_HW3.shape[:2]
        dropped: Counter[str] = Counter(dict.fromkeys(chain.FILTERS, 0))
        views = plan_views(height, width, self.config)
        batches = [self._view_masks(pixels_HW3, view, timer, dropped) for view in views]
        with timer.step("filter"):
            filters = self._image_filters(height, width, len(views))
            batch = chain.apply(MaskBatch.concat(batches), filters, dropped)
        encoded = self._encode(batch, height, width, timer, dropped)
        rows = torch.tensor([mask.row for mask in encoded], dtype=torch.int64, device=self.sam.device)
        batch = batch.select(rows)
        return ImageMasks(
            height=height,
            width=width,
            area=np.array([rle.area(mask.counts, height, width) for mask in encoded], dtype=np.int64),
            boxes=_boxes(encoded, height, width),
            predicted_iou=batch.predicted_iou.cpu().numpy(),
            stability_score=batch.stability_score.cpu().numpy(),
            points=batch.points.cpu().numpy(),
            crop_boxes=xyxy_to_xywh(batch.crop_boxes).cpu().numpy(),
            rle_counts=tuple(mask.counts for mask in encoded),
            dropped=dropped,
        )

    def _mask_filters(self, height: int, width: int) -> list[chain.Filter]:
        """What applies to each mask by itself."""
        filters = []
        if self.config.stability_score_thresh > 0:
            filters.append(chain.stability_score(self.config.stability_score_thresh))
        return [*filters, chain.crop_edge(height, width)]

    def _image_filters(self, height: int, width: int, views: int) -> list[chain.Filter]:
        """What applies to the masks of all views together."""
        filters = []
        if views > 1:
            filters.append(chain.crop_nms(self.config.crop_nms_thresh))
        if self.config.max_coverage is not None:
            filters.append(chain.coverage(self.config.max_coverage, height, width))
        return filters

    def _view_masks(
        self, pixels_HW3: NDArray[np.uint8], view: View, timer: StepTimer, dropped: Counter[str]
    ) -> MaskBatch:
        """The masks that remain of one view of the image."""
        height, width = pixels_HW3.shape[:2]
        x0, y0, x1, y1 = view.crop_box
        with timer.step("encode"):
            image_3SS = preprocess(pixels_HW3[y0:y1, x0:x1], self.sam.config)
            embedding = self.sam.encode_images(image_3SS[None].to(self.sam.device))
        filters = self._mask_filters(height, width)
        batches = [MaskBatch.empty(self.sam.config.mask_size, self.sam.device)]
        for points_N2 in torch.from_numpy(view.points_P2).to(self.sam.device).split(self.config.points_per_batch):
            for candidates in self._point_masks(embedding, points_N2, view, timer, dropped):
                with timer.step("filter"):
                    batches.append(chain.apply(candidates, filters, dropped))
        with timer.step("filter"):
            return chain.apply(MaskBatch.concat(batches), [chain.box_nms(self.config.box_nms_thresh)], dropped)

    def _point_masks(
        self, embedding: ImageEmbedding, points_N2: Tensor, view: View, timer: StepTimer, dropped: Counter[str]
    ) -> Iterator[MaskBatch]:
        """The masks at some points of a view whose predicted IoU passes; the others are never computed."""
        config = self.sam.config
        with timer.step("prompt"):
            inputs_N2 = to_input_frame(points_N2, view.height, view.width, config.image_size)
            decoded = self.sam.decode_points(embedding, inputs_N2)
            iou_NM = decoded.predicted_iou_NM
            threshold = self.config.pred_iou_thresh
            keep_NM = iou_NM > threshold if threshold > 0 else torch.ones_like(iou_NM, dtype=torch.bool)
            # A lone click is ambiguous: its candidates are the three ambiguity masks, not the single one.
            keep_NM[:, 0] = False
            kept = int(keep_NM.sum())
            dropped["predicted_iou"] += keep_NM[:, 1:].numel() - kept
            if kept == 0:
                return
            logits_Khw = self.sam.decode_masks(decoded, keep_NM)
            iou_K = iou_NM[keep_NM]
            points_K2 = points_N2[keep_NM.nonzero()[:, 0]]
        bytes_per_mask = logits_Khw.element_size() * (config.image_size**2 + view.height * view.width)
        block_bytes = CPU_BLOCK_BYTES if self.sam.device.type == "cpu" else GPU_BLOCK_BYTES
        block = max(1, block_bytes // bytes_per_mask)
        for start in range(0, kept, block):
            rows = slice(start, start + block)
            with timer.step("filter"):
                candidates = self._measure(logits_Khw[rows], iou_K[rows], points_K2[rows], view)
            yield candidates

    def _measure(self, logits_Nhw: Tensor, iou_N: Tensor, points_N2: Tensor, view: View) -> MaskBatch:
        """Takes from the full-resolution logits all that needs them, in the frame of the image."""
        logits_NHW = to_image_logits(logits_Nhw, view.height, view.width, self.sam.config.image_size)
        masks_NHW = logits_NHW > MASK_THRESHOLD
        crop_box_4 = torch.tensor(view.crop_box, device=logits_Nhw.device)
        corner_2 = crop_box_4[:2]
        return MaskBatch(
            logits=logits_Nhw,
            predicted_iou=iou_N,
            stability_score=stability_score(logits_NHW, self.config.stability_score_offset),
            area=count_pixels(masks_NHW),
            boxes=masks_to_boxes(masks_NHW) + corner_2.repeat(2),
            points=points_N2 + corner_2,
            crop_boxes=crop_box_4.expand(len(logits_Nhw), 4),
        )

    def _encode(
        self, batch: MaskBatch, height: int, width: int, timer: StepTimer, dropped: Counter[str]
    ) -> list[_EncodedMask]:
        """The masks of the rows that remain after small regions are removed, in the order to return them."""
        min_area = self.config.min_mask_region_area
        encoded: list[_EncodedMask] = []
        for row in range(len(batch)):
            edited = False
            with timer.step("rle"):
                mask_HW = self._full_mask(batch.logits[row], batch.crop_boxes[row], height, width)
            if min_area > 0:
                with timer.step("filter"):
                    keep_largest = not self.config.drop_small_masks
                    mask_HW, edited = remove_small_regions(mask_HW, min_area, keep_largest)
                    if not keep_largest and not mask_HW.any():
                        continue
            with timer.step("rle"):
                encoded.append(_EncodedMask(row, rle.encode(mask_HW), edited))
        if min_area > 0:
            with timer.step("filter"):
                # Editing may have made duplicates: of two, the unedited one stays.
                boxes_N4 = xywh_to_xyxy(torch.from_numpy(_boxes(encoded, height, width)))
                scores_N = torch.tensor([0.0 if mask.edited else 1.0 for mask in encoded])
                kept = nms(boxes_N4, scores_N, max(self.config.box_nms_thresh, self.config.crop_nms_thresh))
                encoded = [encoded[i] for i in kept.tolist()]
        dropped["small_regions"] += len(batch) - len(encoded)
        return encoded

    def _full_mask(self, logits_hw: Tensor, crop_box_4: Tensor, height: int, width: int) -> NDArray[np.bool_]:
        """One mask at the size of the image."""
        x0, y0, x1, y1 = crop_box_4.tolist()
        logits_1HW = to_image_logits(logits_hw[None], y1 - y0, x1 - x0, self.sam.config.image_size)
        mask_HW = np.zeros((height, width), dtype=np.bool_)
        mask_HW[y0:y1, x0:x1] = (logits_1HW[0] > MASK_THRESHOLD).cpu().numpy()
        return mask_HW


class _EncodedMask(NamedTuple):
    row: int  # of the batch
    counts: bytes
    edited: bool  # by the removal of small regions


def _boxes(masks: list[_EncodedMask], height: int, width: int) -> NDArray[np.int64]:
    """Boxes (N, 4) XYWH, w = x1 - x0."""
    return np.array([rle.bbox(mask.counts, height, width) for mask in masks], dtype=np.int64).reshape(-1, 4)
