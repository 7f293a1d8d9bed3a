"""Converts overlapping masks to label maps. Masks that overlap go to different maps, so that no mask is cut.

Shapes: H W image size, A label maps.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


def layer_masks(masks: Iterable[NDArray[np.bool_]], height: int, width: int) -> NDArray[np.int32]:
    """Label maps (A, H, W). Each mask, in order, goes to the first map in which it overlaps no other; 0 is no mask.

    If the largest mask comes first, the first map is the coarsest. Empty masks are left out; A is 0 if all are empty.
    """
    maps: list[NDArray[np.int32]] = []
    labels: list[int] = []  # per map: the number of labels used
    for mask_HW in masks:
        rows, columns = np.flatnonzero(mask_HW.any(axis=1)), np.flatnonzero(mask_HW.any(axis=0))
        if not rows.size:
            continue
        window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        inside = mask_HW[window]
        a = next((a for a, map_HW in enumerate(maps) if not map_HW[window][inside].any()), len(maps))
        if a == len(maps):
            maps.append(np.zeros((height, width), np.int32))
            labels.append(0)
        labels[a] += 1
        maps[a][window][inside] = labels[a]
    return np.stack(maps) if maps else np.zeros((0, height, width), np.int32)
