"""Small holes and small islands in a mask.

Regions are 8-connected. What is below the limit in pixels is small.
Source: Kirillov et al. 2023, Appendix B; `remove_small_regions` of segment-anything.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


def remove_small_regions(mask_HW: Mask, min_area: int, keep_largest: bool) -> tuple[Mask, bool]:
    """Fills small holes, then removes small islands; also says whether there were any."""
    window = _window(mask_HW, min_area)
    part_HW, had_holes = fill_small_holes(mask_HW[window], min_area)
    part_HW, had_islands = remove_small_islands(part_HW, min_area, keep_largest)
    if not (had_holes or had_islands):
        return mask_HW, False
    edited_HW = mask_HW.copy()
    edited_HW[window] = part_HW
    return edited_HW, True


def _window(mask_HW: Mask, min_area: int) -> tuple[slice, slice]:
    """Rows and columns to look at: around the mask so much background that what goes on outside is not small."""
    sides = [np.flatnonzero(mask_HW.any(axis=axis)) for axis in (1, 0)]
    if len(sides[0]) == 0:
        return slice(None), slice(None)
    lengths = [int(side[-1] - side[0]) + 1 for side in sides]
    rows, columns = (
        slice(max(0, int(side[0]) - margin), int(side[-1]) + 1 + margin)
        for side, margin in zip(sides, (-(-min_area // length) for length in reversed(lengths)), strict=True)
    )
    return rows, columns


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
