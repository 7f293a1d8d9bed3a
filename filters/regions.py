"""Removes small holes and small islands from masks.

Regions are 8-connected. A region is small if its area is below a limit in pixels.

Shapes: H W image, r c rows and columns of a window of it, all in pixels; K masks, h w low-resolution logits.
Source: Kirillov et al. 2023, Appendix B; `remove_small_regions` of segment-anything.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskmill.filters import rle

Mask = NDArray[np.bool_]


def remove_small_regions(
    counts: bytes, height: int, width: int, min_area: int, keep_largest: bool
) -> tuple[bytes, bool]:
    """Fills the small holes of a mask, then removes its small islands. Returns the mask and whether it changed.

    Masks are the `counts` of an RLE (`filters.rle`). Only the necessary window of the image is decoded.
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
    """The rows and columns to decode: the box of the mask with a margin.

    The margin is wide enough that background which continues outside the window is not small.
    """
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

    Every background region counts as a hole, including one at the border of the image.
    """
    labels_HW, areas = _regions(~mask_HW)
    if not (areas < min_area).any():
        return mask_HW, False
    filled = np.concatenate([[True], areas < min_area])
    return filled[labels_HW], True


def remove_small_islands(mask_HW: Mask, min_area: int, keep_largest: bool) -> tuple[Mask, bool]:
    """The mask without its small islands, and whether it had any.

    If all islands are small, `keep_largest` keeps the largest one (the first of equal size); otherwise none is kept.
    """
    labels_HW, areas = _regions(mask_HW)
    if not (areas < min_area).any():
        return mask_HW, False
    large = areas >= min_area
    if keep_largest and not large.any():
        large[areas.argmax()] = True
    return np.concatenate([[False], large])[labels_HW], True


def edit_logits(logits_Khw: Tensor, max_area: int) -> Tensor:
    """The logits of masks after the removal of holes and islands of at most `max_area` logit pixels.

    Holes become +10 and islands -10. As in the published code, both are found in the unedited mask.
    Source: `SAM2Transforms.postprocess_masks` of sam2.
    """
    logits_Khw = logits_Khw.clone()
    for logits_hw in logits_Khw:
        inside_hw = (logits_hw > 0).cpu().numpy()
        for mask_hw, value in ((~inside_hw, 10.0), (inside_hw, -10.0)):
            labels_hw, areas = _regions(mask_hw)
            small_hw = np.concatenate([[False], areas <= max_area])[labels_hw]
            logits_hw[torch.from_numpy(small_hw).to(logits_hw.device)] = value
    return logits_Khw


def _regions(mask_HW: Mask) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """Labels (H, W), 0 outside the mask and i + 1 in region i, and the area of each region in pixels."""
    _, labels_HW, stats, _ = cv2.connectedComponentsWithStats(mask_HW.astype(np.uint8, order="C"), connectivity=8)
    return labels_HW.astype(np.int32, copy=False), stats[1:, cv2.CC_STAT_AREA].astype(np.int32, copy=False)
