"""The filters of the generator, and counters of the masks that each filter drops.

Shapes: K masks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from maskmill.filters.boxes import near_crop_edge
from maskmill.filters.masks import MaskBatch
from maskmill.filters.names import DroppedBy
from maskmill.filters.nms import nms


@dataclass(frozen=True)
class Filter:
    """A named filter. `keep` returns the rows to keep: a boolean (K,), or indices in their new order."""

    name: DroppedBy
    keep: Callable[[MaskBatch], Tensor]


def apply(batch: MaskBatch, filters: Iterable[Filter], dropped: Counter[str]) -> MaskBatch:
    """Applies filters one after the other. Adds the number of masks that each one drops to `dropped`."""
    for filter_ in filters:
        kept = batch.select(filter_.keep(batch))
        dropped[filter_.name.counter] += len(batch) - len(kept)
        batch = kept
    return batch


def apply_together(batch: MaskBatch, filters: Iterable[Filter], dropped: Counter[str]) -> MaskBatch:
    """`apply` for filters that decide on each mask separately. Copies rows once and synchronises with a GPU once."""
    dropped_by_K = first_to_drop(batch, filters).cpu()
    is_kept_K = dropped_by_K == DroppedBy.NONE
    dropped.update(DroppedBy(value).counter for value in dropped_by_K[~is_kept_K].tolist())
    return batch.select(is_kept_K)


def first_to_drop(batch: MaskBatch, filters: Iterable[Filter]) -> Tensor:
    """The DroppedBy value (K,) int64 of each mask: the first filter that drops it, or NONE.

    For filters that decide on each mask separately.
    """
    dropped_by_K = torch.full_like(batch.area, DroppedBy.NONE)
    for filter_ in filters:
        drops_K = (dropped_by_K == DroppedBy.NONE) & ~filter_.keep(batch)
        dropped_by_K = dropped_by_K.masked_fill(drops_K, filter_.name)
    return dropped_by_K


def stability_score(threshold: float) -> Filter:
    """Keeps masks with a score of at least the threshold. Drops NaN, the score of a mask without pixels."""
    return Filter(DroppedBy.STABILITY_SCORE, lambda batch: batch.stability_score >= threshold)


def crop_edge(height: int, width: int, inner_boxes_K4: Tensor | None = None) -> Filter:
    """Drops masks that their crop probably cuts off, in an image of (height, width) pixels.

    See `filters.boxes.near_crop_edge` for `inner_boxes_K4`.
    """
    return Filter(
        DroppedBy.CROP_EDGE, lambda batch: ~near_crop_edge(batch.boxes, batch.crop_boxes, height, width, inner_boxes_K4)
    )


def box_nms(threshold: float) -> Filter:
    """NMS by predicted IoU: of masks with a box IoU above the threshold, keeps the one with the highest score."""
    return Filter(DroppedBy.BOX_NMS, lambda batch: nms(batch.boxes, batch.predicted_iou, threshold))


def crop_nms(threshold: float) -> Filter:
    """NMS by crop size: of masks with a box IoU above the threshold, keeps the one from the smallest crop."""

    def keep(batch: MaskBatch) -> Tensor:
        x0, y0, x1, y1 = batch.crop_boxes.unbind(dim=1)
        return nms(batch.boxes, 1 / ((x1 - x0) * (y1 - y0)), threshold)

    return Filter(DroppedBy.CROP_NMS, keep)


def coverage(maximum: float, height: int, width: int) -> Filter:
    """Drops masks that cover at least this fraction of an image of (height, width) pixels."""
    return Filter(DroppedBy.COVERAGE, lambda batch: batch.area < maximum * height * width)
