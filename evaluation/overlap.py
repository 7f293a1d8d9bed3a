"""The overlap of masks, computed from their RLEs.

Shapes: N masks against K masks of the same image, as COCO's compressed counts. The counts must be valid: pycocotools
does not check them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from maskmill.filters import rle


def iou(counts_N: Sequence[bytes], counts_K: Sequence[bytes], height: int, width: int) -> NDArray[np.float64]:
    """The IoU (N, K) of each pair of masks."""
    if not counts_N or not counts_K:
        return np.zeros((len(counts_N), len(counts_K)))
    return _overlap(counts_N, counts_K, height, width, as_crowd=False)


def contain(x: int, y: int, counts_K: Sequence[bytes], height: int, width: int) -> NDArray[np.bool_]:
    """Whether each mask (K,) contains the pixel."""
    if not counts_K:
        return np.zeros(0, np.bool_)
    pixel_HW = np.zeros((height, width), np.bool_)
    pixel_HW[y, x] = True
    # For a crowd, coco.iou divides by the area of the first mask: 1 if the pixel is inside, else 0.
    return _overlap([rle.encode(pixel_HW)], counts_K, height, width, as_crowd=True)[0] > 0.5


def _overlap(
    counts_N: Sequence[bytes], counts_K: Sequence[bytes], height: int, width: int, as_crowd: bool
) -> NDArray[np.float64]:
    rows: list[Any]  # pycocotools declares a type for them that cannot be imported
    columns: list[Any]
    rows, columns = (
        [{"size": [height, width], "counts": counts} for counts in several] for several in (counts_N, counts_K)
    )
    ious = coco.iou(rows, columns, [int(as_crowd)] * len(columns))
    return np.asarray(ious, np.float64).reshape(len(rows), len(columns))
