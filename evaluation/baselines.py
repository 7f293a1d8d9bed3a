"""Baselines for a model: segment proposals from colour alone and from a regular grid.

Both are ordered coarse to fine, so the first N are the proposals for a limit of N.

Sources: Felzenszwalb and Huttenlocher, "Efficient Graph-Based Image Segmentation", 2004.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.segmentation import felzenszwalb

from maskmill.filters import rle

# The best of 3 minimum sizes, 8 triples of scales and 2 sigmas on the validation split of BSDS500. The smallest
# segments are below the smallest that recall counts (0.5 % of the image).
FELZENSZWALB_SCALES = (1000, 300, 100)
FELZENSZWALB_SIGMA = 0.8
FELZENSZWALB_MIN_SHARE = 0.003  # of the image
# The scales depend on the size in pixels. Larger images are reduced to about the size of BSDS500's images.
FELZENSZWALB_LONGEST_SIDE = 512
GRID_CELLS = (1, 2, 3, 4, 6)  # along each side: 66 cells in all


def felzenszwalb_masks(pixels_HW3: NDArray[np.uint8]) -> list[bytes]:
    """The segments of an RGB image at three scales, coarsest scale first and largest first within it, as RLE counts.

    A segment that is the same at two scales is returned once.
    """
    height, width = pixels_HW3.shape[:2]
    shrink = min(1.0, FELZENSZWALB_LONGEST_SIDE / max(height, width))
    h, w = max(1, round(height * shrink)), max(1, round(width * shrink))
    small_hw3 = cv2.resize(pixels_HW3, (w, h), interpolation=cv2.INTER_AREA)
    counts: dict[bytes, None] = {}
    for scale in FELZENSZWALB_SCALES:
        min_size = max(1, round(FELZENSZWALB_MIN_SHARE * h * w))
        labels_hw = felzenszwalb(small_hw3, scale=scale, sigma=FELZENSZWALB_SIGMA, min_size=min_size)
        labels_HW = cv2.resize(labels_hw.astype(np.int32), (width, height), interpolation=cv2.INTER_NEAREST)
        areas = np.bincount(labels_HW.ravel())
        for label in np.argsort(-areas, kind="stable")[: np.count_nonzero(areas)]:
            counts[rle.encode(labels_HW == label)] = None
    return list(counts)


def grid_masks(pixels_HW3: NDArray[np.uint8]) -> list[bytes]:
    """The cells of grids of 1 x 1, 2 x 2, 3 x 3, 4 x 4 and 6 x 6 over the image, as RLE counts."""
    height, width = pixels_HW3.shape[:2]
    counts: list[bytes] = []
    for n in GRID_CELLS:
        ys, xs = (np.round(np.linspace(0, side, n + 1)).astype(int) for side in (height, width))
        for top, bottom in pairwise(ys):
            for left, right in pairwise(xs):
                mask_HW = np.zeros((height, width), np.bool_)
                mask_HW[top:bottom, left:right] = True
                if mask_HW.any():  # an image may have fewer pixels than cells
                    counts.append(rle.encode(mask_HW))
    return counts


BASELINES: dict[str, Callable[[NDArray[np.uint8]], list[bytes]]] = {
    "felzenszwalb": felzenszwalb_masks,
    "grid": grid_masks,
}
