"""The pixel deepest inside a region, where simulated clicks are placed.

Shapes: H W image, r c bounding box of the region, all in pixels.
Source: Kirillov et al. 2023, Appendix D.1.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray


def deepest_pixel(region_HW: NDArray[np.bool_]) -> tuple[tuple[int, int], float]:
    """x, y of the pixel farthest from the border of the region, and its distance to the border in pixels.

    The edge of the image counts as a border. An empty region gives (0, 0) and 0.0.
    """
    rows, columns = np.flatnonzero(region_HW.any(axis=1)), np.flatnonzero(region_HW.any(axis=0))
    if not len(rows):
        return (0, 0), 0.0
    # Distances are computed inside the bounding box only, because most regions are small.
    region_rc = region_HW[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    padded = np.pad(region_rc, 1).astype(np.uint8)
    depth_rc = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    y, x = divmod(int(depth_rc.argmax()), region_rc.shape[1])
    return (int(columns[0]) + x, int(rows[0]) + y), float(depth_rc[y, x])
