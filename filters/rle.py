"""Masks as COCO's compressed run lengths: column-major, starting with the count of zeros."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco


def encode(mask_HW: NDArray[np.bool_]) -> bytes:
    """The `counts` of a boolean mask. With `size` (H, W) they are what pycocotools calls an RLE."""
    # pycocotools wants the columns in a row; OpenCV transposes ten times faster than NumPy.
    by_column_HW = np.asarray(cv2.transpose(mask_HW.view(np.uint8)), np.uint8).T
    counts = coco.encode(by_column_HW)["counts"]
    assert isinstance(counts, bytes)
    return counts


def decode(counts: bytes, height: int, width: int) -> NDArray[np.bool_]:
    """The mask (H, W)."""
    return coco.decode({"size": [height, width], "counts": counts}).view(np.bool_)


def area(counts: bytes, height: int, width: int) -> int:
    """Pixels in the mask, without decoding it."""
    return int(coco.area({"size": [height, width], "counts": counts}))


def bbox(counts: bytes, height: int, width: int) -> tuple[int, int, int, int]:
    """The mask's box as the tables have it, without decoding: XYWH, w = x1 - x0; zeros for an empty mask."""
    x, y, w, h = (int(side) for side in coco.toBbox({"size": [height, width], "counts": counts}))
    # pycocotools counts the pixels from side to side; 0 only for an empty mask.
    return x, y, max(w - 1, 0), max(h - 1, 0)


def run_lengths(counts: bytes) -> NDArray[np.int64]:
    """(R,) the lengths of the runs, zeros first, that COCO's compressed `counts` stand for. ValueError where none.

    The format is that of rleToString in pycocotools' maskApi.c: base 48, five bits a character, lowest first, 32 where
    more follow, two's complement; from the fourth on, the difference from the number two before. pycocotools itself
    takes the string on trust: some that are damaged make it read past the end.
    """
    digits = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    if digits.size == 0 or digits.min() < 0 or digits.max() > 63:
        raise ValueError("is empty or has characters that are not COCO's")
    last = np.flatnonzero(digits < 32)
    if last.size == 0 or last[-1] != digits.size - 1:
        raise ValueError("ends within a number")
    first = np.concatenate([[0], last[:-1] + 1])
    place = np.arange(digits.size) - np.repeat(first, last - first + 1)
    if place.max() > 6:  # 35 bits, more than any image has pixels
        raise ValueError("has a number that is too long")
    numbers = np.add.reduceat((digits & 31) << 5 * place, first)
    numbers -= np.where(digits[last] & 16, 1 << 5 * (place[last] + 1), 0)
    for lane in (1, 2):
        numbers[lane::2] = numbers[lane::2].cumsum()
    if numbers.min() < 0:
        raise ValueError("has a run of negative length")
    return numbers


def measure(runs: NDArray[np.int64], height: int, width: int) -> tuple[int, tuple[int, int, int, int]]:
    """Area and box of the mask with these column-major runs, as the tables have them.

    Raises ValueError where the runs do not add up to the image.
    """
    ends = runs.cumsum()
    if ends[-1] != height * width:
        raise ValueError(f"covers {ends[-1]} pixels of {height * width}")
    start, stop = ends[0::2][: len(ends) // 2], ends[1::2]
    start, stop = start[stop > start], stop[stop > start]
    if start.size == 0:
        return 0, (0, 0, 0, 0)
    left, right = start[0] // height, (stop[-1] - 1) // height
    if (start // height != (stop - 1) // height).any():  # a run that goes on in the next column touches both borders
        top, bottom = 0, height - 1
    else:
        top, bottom = (start % height).min(), ((stop - 1) % height).max()
    return int((stop - start).sum()), (int(left), int(top), int(right - left), int(bottom - top))
