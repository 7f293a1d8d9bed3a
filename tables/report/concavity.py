"""Concavity of masks, as defined in the paper of Segment Anything: 1 - area of the mask / area of its convex hull."""

from __future__ import annotations

import cv2
import numpy as np

from maskmill.filters import rle


def concavity(counts: bytes, height: int, width: int) -> float:
    """The concavity of a mask of at least one pixel: 0 if it is convex. Pixels count as squares of area 1.

    Raises ValueError if the counts are invalid.
    """
    area = rle.area(counts, height, width)
    x, _, w, _ = rle.bbox(counts, height, width)
    mask_Hc = rle.decode(counts, height, width, slice(x, x + w + 1))
    columns = np.flatnonzero(mask_Hc.any(axis=0))
    top = mask_Hc.argmax(axis=0)[columns]
    bottom = height - mask_Hc[::-1].argmax(axis=0)[columns]
    # The hull touches only the outer corners of the first and last pixel of each column.
    corners_XY = np.stack([np.tile(np.concatenate([columns, columns + 1]), 2), np.repeat([top, bottom], 2, 0).ravel()])
    hull = cv2.convexHull(corners_XY.T.astype(np.int32))
    return max(0.0, 1 - area / cv2.contourArea(hull))
