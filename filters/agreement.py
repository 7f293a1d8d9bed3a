"""How far two sets of masks of the same images agree: A and B are matched one to one.

Shapes: an image of H W pixels has N masks in A and K in B, as COCO's compressed counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Agreement:
    """How far the masks of some images agree. Agreements can be added."""

    images: int = 0
    masks_a: int = 0
    masks_b: int = 0
    matched: int = 0  # pairs of masks
    iou_sum: float = 0.0  # over the pairs
    same_count: int = 0  # images with equal numbers of masks in A and B
    identical: int = 0  # images with byte-identical masks in the same order

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    @property
    def shares(self) -> dict[str, float | None]:
        """Ratios of the counts, each from 0 to 1. None if the denominator is 0."""
        return {
            "matched": _ratio(2 * self.matched, self.masks_a + self.masks_b),
            "matched_of_a": _ratio(self.matched, self.masks_a),
            "matched_of_b": _ratio(self.matched, self.masks_b),
            "mean_iou": _ratio(self.iou_sum, self.matched),
            "same_count": _ratio(self.same_count, self.images),
            "identical": _ratio(self.identical, self.images),
        }


def agree(counts_N: Sequence[bytes], counts_K: Sequence[bytes], height: int, width: int, threshold: float) -> Agreement:
    """The agreement of the masks of one image. Two masks can match if their IoU is at least `threshold`."""
    # Imported here: Numba loads slowly, and programs that only read an Agreement do not need it.
    import numpy as np

    from maskmill.filters import rle_algebra
    from maskmill.filters.matching import match

    identical = counts_N == counts_K
    if identical:
        iou_M = np.ones(len(counts_N))
    else:
        iou_NK = rle_algebra.iou_matrix(counts_N, counts_K, height, width)
        iou_M = iou_NK[match(iou_NK, threshold)]
    return Agreement(
        images=1,
        masks_a=len(counts_N),
        masks_b=len(counts_K),
        matched=len(iou_M),
        iou_sum=float(iou_M.sum()),
        same_count=int(len(counts_N) == len(counts_K)),
        identical=int(identical),
    )


def _ratio(part: float, whole: int) -> float | None:
    return part / whole if whole else None
