"""Segment recall: how well the masks of an image cover its annotated segments.

It is the best IoU of each annotated segment with any mask of the image, averaged over the segments of all images. More
masks cannot lower it, so it is always reported with the number of masks.

Shapes: N masks of one image, best first; K segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from maskmill.evaluation import overlap


@dataclass(frozen=True, eq=False)
class RecallCurve:
    """The recall of the first n masks of one image, for every n."""

    best_N: NDArray[np.float64]  # at n - 1: the sum, over the segments, of the best IoU among the first n masks
    segments: int


@dataclass(frozen=True)
class Recall:
    """The recall of a set of images. None if they have no segments."""

    recall: float | None
    masks_per_image: float


def recall_curve(counts_N: Sequence[bytes], segments_K: Sequence[bytes], height: int, width: int) -> RecallCurve:
    """The curve of one image from the COCO counts of its masks, best first, and of its segments."""
    best_NK = np.maximum.accumulate(overlap.iou(counts_N, segments_K, height, width), axis=0)
    return RecallCurve(best_NK.sum(axis=1), len(segments_K))


def recall_at(curves: Sequence[RecallCurve], limit: int | None = None) -> Recall:
    """The recall with at most `limit` masks per image."""
    counts = [len(curve.best_N) if limit is None else min(limit, len(curve.best_N)) for curve in curves]
    best = sum(float(curve.best_N[count - 1]) for curve, count in zip(curves, counts, strict=True) if count)
    segments = sum(curve.segments for curve in curves)
    return Recall(best / segments if segments else None, sum(counts) / max(1, len(counts)))
