"""Converts COCO segmentations (polygons, or RLEs with or without compression) to compressed RLEs."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from pycocotools import mask as coco

# A polygon may extend beyond the image by this many image sides: the rasteriser visits each pixel of each edge.
_MARGIN = 1.0


class SegmentationError(Exception):
    """A segmentation that is not a valid mask of its image."""


def to_counts(segmentation: Any, height: int, width: int) -> bytes | None:
    """The compressed counts of one segmentation from a JSON file; None if it has no area.

    Counts that are compressed already are returned unchanged and unchecked: filters.rle checks them. Raises
    SegmentationError.
    """
    if not segmentation:  # missing, null or an empty list: a box without a mask
        return None
    if isinstance(segmentation, dict):
        return _from_runs(segmentation, height, width)
    if isinstance(segmentation, list):
        return _from_polygons(segmentation, height, width)
    raise SegmentationError("neither polygons nor an RLE")


def _from_runs(fields: dict[str, Any], height: int, width: int) -> bytes:
    size, counts = fields.get("size"), fields.get("counts")
    if size != [height, width]:
        raise SegmentationError(f"an RLE of size {size} for an image of size {[height, width]} (height, width)")
    if isinstance(counts, str):
        return counts.encode()
    if not isinstance(counts, list) or not all(type(run) is int and run >= 0 for run in counts):
        raise SegmentationError("an RLE with counts that are neither text nor a list of non-negative integers")
    if sum(counts) != height * width:
        raise SegmentationError(f"an RLE that covers {sum(counts)} pixels of {height * width}")
    return _counts(coco.frPyObjects(cast(Any, {"size": [height, width], "counts": counts}), height, width))


def _from_polygons(polygons: list[Any], height: int, width: int) -> bytes | None:
    closed = [_checked(polygon, height, width) for polygon in polygons]
    # Fewer than three corners have no area, and pycocotools reads four numbers as a box.
    closed = [polygon for polygon in closed if len(polygon) >= 6]
    return _counts(coco.merge(coco.frPyObjects(cast(Any, closed), height, width))) if closed else None


def _counts(encoded: Any) -> bytes:
    return encoded["counts"]


def _checked(polygon: Any, height: int, width: int) -> list[Any]:
    try:
        corners = np.array(polygon, np.float64)
    except (TypeError, ValueError):
        corners = np.empty((0, 0))
    if corners.ndim != 1:
        raise SegmentationError("a polygon that is not a list of numbers")
    if len(corners) % 2:
        raise SegmentationError(f"a polygon of {len(corners)} numbers: x and y alternate, so their count must be even")
    if not np.isfinite(corners).all():
        raise SegmentationError("a polygon with a number that is not finite")
    for name, along, side in (("x", corners[::2], width), ("y", corners[1::2], height)):
        if len(along) and (along.min() < -_MARGIN * side or along.max() > (1 + _MARGIN) * side):
            raise SegmentationError(
                f"a polygon that reaches from {name} {along.min():g} to {along.max():g} in an image of {side}"
            )
    return corners.tolist()
