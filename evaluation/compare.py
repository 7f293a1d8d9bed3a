"""Compares the masks of two runs, A and B: matches the masks of each image one to one.

Shapes: an image of H W pixels has N masks in A and K in B, as COCO's compressed counts.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from maskmill.annotations.pairs import Pairs, read_pairs
from maskmill.filters import rle_algebra
from maskmill.filters.matching import match
from maskmill.pipeline.ledger import flatten


def settings_that_differ(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings that differ: name -> (value in A, value in B). Nested names are joined by dots; None: not set."""
    in_a, in_b = flatten(a), flatten(b)
    names = sorted(in_a.keys() | in_b.keys())
    return {name: (in_a.get(name), in_b.get(name)) for name in names if in_a.get(name) != in_b.get(name)}


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


def _ratio(part: float, whole: int) -> float | None:
    return part / whole if whole else None


def compare_images(pairs: Pairs, threshold: float) -> Iterator[tuple[str, Agreement]]:
    """The id and the agreement of each image. Holds one part of each run in memory at a time.

    Raises ObjectError if a part or a mask is damaged, and StorageError if the store cannot be reached.
    """
    for masks in read_pairs(pairs):
        yield masks.image_id, agree(masks.counts_N, masks.counts_K, masks.height, masks.width, threshold)


def agree(counts_N: Sequence[bytes], counts_K: Sequence[bytes], height: int, width: int, threshold: float) -> Agreement:
    """The agreement of the masks of one image. Two masks can match if their IoU is at least `threshold`."""
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


def summarise(agreements: Iterable[tuple[str, Agreement]], limit: int) -> tuple[Agreement, list[tuple[str, Agreement]]]:
    """The sum of all agreements, and up to `limit` images that agree least: by the share of matched masks, then by IoU.

    Identical images are not listed.
    """
    total = Agreement()
    worst: list[tuple[str, Agreement]] = []
    for image_id, agreement in agreements:
        total += agreement
        if not agreement.identical:
            insort(worst, (image_id, agreement), key=_rank)
            del worst[limit:]
    return total, worst


def _rank(image: tuple[str, Agreement]) -> tuple[float, float, str]:
    image_id, agreement = image
    return agreement.shares["matched"] or 0, agreement.shares["mean_iou"] or 0, image_id
