"""Encodes the masks of an image as run lengths, and removes their small holes and islands.

Shapes: K masks.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskmill.filters import mask_measure, rle
from maskmill.filters.boxes import xywh_to_xyxy, xyxy_to_xywh
from maskmill.filters.masks import MaskBatch
from maskmill.filters.names import DroppedBy
from maskmill.filters.nms import nms
from maskmill.filters.regions import remove_small_regions
from maskmill.model.config import NetworkConfig
from maskmill.model.threads import SingleCoreThreads
from maskmill.pipeline.config import GeneratorConfig
from maskmill.pipeline.records import ImageMasks, StepTimer
from maskmill.pipeline.upsampling import crop_upsampling

# Masks that are encoded together; bounds the memory for the positions of their borders.
MASKS_PER_BLOCK = 64
# On a CPU threads encode blocks at once: enough blocks that all of them are busy to the end.
CPU_MASKS_PER_BLOCK = 16


class EncodedMask(NamedTuple):
    """A mask of the image as compressed COCO `counts`."""

    row: int  # in the MaskBatch
    counts: bytes
    edited: bool = False  # whether the removal of small regions changed it


class MaskEncoder:
    """Encodes the masks of one network."""

    def __init__(self, network: NetworkConfig, config: GeneratorConfig, threads: SingleCoreThreads) -> None:
        self._network, self._config, self._threads = network, config, threads

    def __call__(
        self, batch: MaskBatch, height: int, width: int, timer: StepTimer, dropped: Counter[str]
    ) -> ImageMasks:
        """The masks of an image of (height, width) pixels, in the order of the published generator.

        Adds the number of masks that the removal of small regions drops to `dropped`, which is part of the result.
        """
        with timer.step("rle"):
            masks = [EncodedMask(row, counts) for row, counts in enumerate(self._counts(batch, height, width))]
        if self._config.min_mask_region_area > 0 and not self._config.edits_logits:
            with timer.step("filter"):
                masks = self._remove_small_regions(masks, height, width)
        dropped[DroppedBy.SMALL_REGIONS.counter] += len(batch) - len(masks)
        batch = batch.select(torch.tensor([mask.row for mask in masks], dtype=torch.int64))
        return ImageMasks(
            height=height,
            width=width,
            area=np.array([rle.area(mask.counts, height, width) for mask in masks], dtype=np.int64),
            boxes=_boxes(masks, height, width),
            predicted_iou=batch.predicted_iou.cpu().numpy(),
            stability_score=batch.stability_score.cpu().numpy(),
            points=batch.points.cpu().numpy(),
            crop_boxes=xyxy_to_xywh(batch.crop_boxes).cpu().numpy(),
            rle_counts=tuple(mask.counts for mask in masks),
            dropped=dropped,
        )

    def _counts(self, batch: MaskBatch, height: int, width: int) -> list[bytes]:
        """The `counts` of each mask. Masks of the same crop are encoded together."""

        @torch.inference_mode()  # inference mode is thread-local
        def encode(block: Tensor) -> list[bytes]:
            x0, y0, x1, y1 = crop_boxes_K4[block[0]].tolist()
            upsampling = crop_upsampling(self._network, y1 - y0, x1 - x0)
            logits = batch.logits[block.to(batch.logits.device, non_blocking=True)]
            return mask_measure.encode(logits, upsampling, (x0, y0), height, width)

        on_cpu = batch.logits.device.type == "cpu"
        crop_boxes_K4 = batch.crop_boxes.cpu()
        blocks: list[Tensor] = []
        for crop_box_4 in crop_boxes_K4.unique(dim=0):
            rows = (crop_boxes_K4 == crop_box_4).all(dim=1).nonzero()[:, 0]
            blocks += rows.split(CPU_MASKS_PER_BLOCK if on_cpu else MASKS_PER_BLOCK)
        counts = [b""] * len(batch)
        encoded = self._threads.map(encode, blocks) if on_cpu else map(encode, blocks)
        for block, block_counts in zip(blocks, encoded, strict=True):
            for row, text in zip(block.tolist(), block_counts, strict=True):
                counts[row] = text
        return counts

    def _remove_small_regions(self, masks: list[EncodedMask], height: int, width: int) -> list[EncodedMask]:
        min_area, keep_largest = self._config.min_mask_region_area, not self._config.drop_small_masks

        def edit(mask: EncodedMask) -> EncodedMask:
            counts, edited = remove_small_regions(mask.counts, height, width, min_area, keep_largest)
            return EncodedMask(mask.row, counts, edited)

        edited = self._threads.map(edit, masks)
        kept = [mask for mask in edited if keep_largest or rle.area(mask.counts, height, width)]
        # Editing can produce duplicates. NMS keeps the unedited mask.
        boxes_K4 = xywh_to_xyxy(torch.from_numpy(_boxes(kept, height, width)))
        scores_K = torch.tensor([0.0 if mask.edited else 1.0 for mask in kept])
        rows = nms(boxes_K4, scores_K, max(self._config.box_nms_thresh, self._config.crop_nms_thresh))
        return [kept[row] for row in rows.tolist()]


def _boxes(masks: list[EncodedMask], height: int, width: int) -> NDArray[np.int64]:
    """Boxes (K, 4) XYWH, w = x1 - x0."""
    return np.array([rle.bbox(mask.counts, height, width) for mask in masks], dtype=np.int64).reshape(-1, 4)
