"""Small holes and small islands in a mask.

Regions are 8-connected. What is below the limit in pixels is small.

Shapes: H W size of the image, X columns and Y rows of it that are looked at.
Source: Kirillov et al. 2023, Appendix B; `remove_small_regions` of segment-anything.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from maskmill.filters import rle

Mask = NDArray[np.bool_]


def remove_small_regions(
    counts: bytes, height: int, width: int, min_area: int, keep_largest: bool
) -> tuple[bytes, bool]:
    """Fills the small holes of a mask, then removes its small islands; also says whether there were any.

    In and out go the `counts` of an RLE (`filters.rle`); what is decoded is not more of the image than has to be seen.
    """
    rows, columns = _window(counts, height, width, min_area)
    mask_Hc = rle.decode(counts, height, width, columns)
    part_rc, had_holes = fill_small_holes(mask_Hc[rows], min_area)
    part_rc, had_islands = remove_small_islands(part_rc, min_area, keep_largest)
    if not (had_holes or had_islands):
        return counts, False
    mask_Hc[rows] = part_rc
    return rle.encode_columns(mask_Hc, columns.start, width), True


def _window(counts: bytes, height: int, width: int, min_area: int) -> tuple[slice, slice]:
    """Rows and columns to look at: around the mask so much background that what goes on outside is not small."""
    if rle.area(counts, height, width) == 0:
        return slice(0, height), slice(0, width)
    x, y, w, h = rle.bbox(counts, height, width)
    above, beside = (-(-min_area // (side + 1)) for side in (w, h))
    return (
        slice(max(0, y - above), min(height, y + h + 1 + above)),
        slice(max(0, x - beside), min(width, x + w + 1 + beside)),
    )


def fill_small_holes(mask_HW: Mask, min_area: int) -> tuple[Mask, bool]:
    """The mask with its small holes filled, and whether it had any.

    Any region of background counts as a hole, also one at the border of the image.
    """
    labels_HW, areas = _regions(~mask_HW)
    if not (areas < min_area).any():
        return mask_HW, False
    filled = np.concatenate([[True], areas < min_area])
    return filled[labels_HW], True


def remove_small_islands(mask_HW: Mask, min_area: int, keep_largest: bool) -> tuple[Mask, bool]:
    """The mask without its small islands, and whether it had any.

    Where all are small, `keep_largest` says if the largest (the first of equals) stays or nothing does.
    """
    labels_HW, areas = _regions(mask_HW)
    if not (areas < min_area).any():
        return mask_HW, False
    large = areas >= min_area
    if keep_largest and not large.any():
        large[areas.argmax()] = True
    return np.concatenate([[False], large])[labels_HW], True


def _regions(mask_HW: Mask) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """Labels (H, W), 0 outside the mask and r + 1 in region r, and areas (R,) in pixels."""
    _, labels_HW, stats, _ = cv2.connectedComponentsWithStats(mask_HW.astype(np.uint8, order="C"), connectivity=8)
    return labels_HW.astype(np.int32, copy=False), stats[1:, cv2.CC_STAT_AREA].astype(np.int32, copy=False)
