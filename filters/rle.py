"""Masks as compressed run lengths of COCO: column-major, starting with a run of zeros.

Shapes: K masks, H W image, c some of its columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

_CHARACTERS = bytes(range(48, 48 + 64))


def encode(mask_HW: NDArray[np.bool_]) -> bytes:
    """The `counts` of a boolean mask. pycocotools calls a dictionary of `counts` and `size` (H, W) an RLE."""
    # pycocotools requires column-major memory. OpenCV transposes ten times faster than NumPy.
    by_column_HW = np.asarray(cv2.transpose(mask_HW.view(np.uint8)), np.uint8).T
    counts = coco.encode(by_column_HW)["counts"]
    assert isinstance(counts, bytes)
    return counts


def from_changes(positions: Sequence[NDArray[np.int64]], pixels: int) -> list[bytes]:
    """The `counts` of masks of `pixels` pixels each, from the sorted positions at which the value changes.

    Positions count pixels column by column. A position that occurs twice is no change: the mask continues from the end
    of one column to the start of the next.
    """
    changes = np.concatenate([np.empty(0, np.int64), *positions])
    mask = np.repeat(np.arange(len(positions)), [len(of_mask) for of_mask in positions])
    twice = (changes[1:] == changes[:-1]) & (mask[1:] == mask[:-1])
    once = ~(np.append(twice, False) | np.append(False, twice)) & (changes < pixels)
    changes_K = np.bincount(mask[once], minlength=len(positions))
    end = np.insert(changes[once], changes_K.cumsum(), pixels)  # of each run
    length = np.diff(end, prepend=0)
    first = (changes_K + 1).cumsum() - (changes_K + 1)
    length[first] = end[first]
    return _compress(length, changes_K + 1)


def _compress(length: NDArray[np.int64], runs_K: NDArray[np.int64]) -> list[bytes]:
    """Encodes the run lengths of K masks as text: `runs_K` of them per mask. See `_runs` for the format."""
    position = np.arange(len(length)) - np.repeat(runs_K.cumsum() - runs_K, runs_K)
    number = length.copy()
    later = np.flatnonzero(position > 2)
    number[later] -= length[later - 2]
    digits = np.ones(len(number), np.int64)
    for place in range(1, 7):
        digits += (number >= 16 << 5 * (place - 1)) | (number < -16 << 5 * (place - 1))
    start = digits.cumsum() - digits
    text = np.empty(digits.sum(), np.uint8)
    for place in range(7):
        longer = np.flatnonzero(digits > place)
        more = digits[longer] > place + 1
        text[start[longer] + place] = ((number[longer] >> 5 * place) & 31) + 32 * more + 48
    ends = np.append(start, len(text))[runs_K.cumsum()]
    return [text[a:b].tobytes() for a, b in pairwise([0, *ends.tolist()])]


def encode_columns(mask_Hc: NDArray[np.bool_], first: int, width: int) -> bytes:
    """The `counts` of a mask of `width` columns that is empty outside the given columns, which start at `first`."""
    height = len(mask_Hc)
    by_column = mask_Hc.T.ravel()
    changes = np.flatnonzero(np.diff(by_column, prepend=False, append=False))
    return from_changes([changes + first * height], height * width)[0]


def decode(counts: bytes, height: int, width: int, columns: slice | None = None) -> NDArray[np.bool_]:
    """The mask (H, W), or its columns from `start` to `stop`. Raises ValueError if the counts are invalid."""
    start, stop = (0, width) if columns is None else (columns.start, columns.stop)
    ends = _runs_of(counts, height, width).end.clip(start * height, stop * height)
    lengths = np.diff(ends, prepend=start * height)
    return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(stop - start, height).T


def run_lengths(counts: bytes, height: int, width: int) -> list[int]:
    """The `counts` in the uncompressed form of COCO. Raises ValueError if they are invalid."""
    return _runs_of(counts, height, width).length.tolist()


def _runs_of(counts: bytes, height: int, width: int) -> _Runs:
    # pycocotools does not validate counts: invalid ones make it read and write out of bounds.
    runs = _runs([counts], np.array([height]), np.array([width]))
    if runs.faults:
        raise ValueError(f"these counts are no mask: the RLE {runs.faults[0]}")
    return runs


def area(counts: bytes, height: int, width: int) -> int:
    """The number of pixels in the mask, without decoding it."""
    return int(coco.area({"size": [height, width], "counts": counts}))


def bbox(counts: bytes, height: int, width: int) -> tuple[int, int, int, int]:
    """The box of the mask as in the tables, without decoding: XYWH, w = x1 - x0; zeros for an empty mask."""
    x, y, w, h = (int(side) for side in coco.toBbox({"size": [height, width], "counts": counts}))
    # pycocotools returns w = x1 - x0 + 1, or 0 for an empty mask.
    return x, y, max(w - 1, 0), max(h - 1, 0)


def measure(
    counts: Sequence[bytes], heights: NDArray[np.int64], widths: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], dict[int, str]]:
    """Areas (K,) and boxes (K, 4) of K masks, as in the tables. Vectorised: a part may hold thousands of masks.

    Also returns the faults of invalid counts, by index of the mask.
    """
    runs = _runs(counts, heights, widths)
    sound = np.ones(len(counts), np.bool_)
    sound[list(runs.faults)] = False
    of_ones = (runs.position % 2 == 1) & (runs.length > 0) & sound[runs.mask]
    mask, length, stop = runs.mask[of_ones], runs.length[of_ones], runs.end[of_ones]
    area, boxes = np.zeros(len(counts), np.int64), np.zeros((len(counts), 4), np.int64)
    if mask.size == 0:
        return area, boxes, runs.faults
    height = heights[mask]
    left, right = (stop - length) // height, (stop - 1) // height
    # A run that continues in the next column touches the top and the bottom border.
    top = np.where(left < right, 0, stop - length - left * height)
    bottom = np.where(left < right, height - 1, stop - 1 - right * height)
    first = _firsts(mask)
    area[mask[first]] = np.add.reduceat(length, first)
    x0, y0 = np.minimum.reduceat(left, first), np.minimum.reduceat(top, first)
    x1, y1 = np.maximum.reduceat(right, first), np.maximum.reduceat(bottom, first)
    boxes[mask[first]] = np.stack([x0, y0, x1 - x0, y1 - y0], axis=1)
    return area, boxes, runs.faults


@dataclass(frozen=True)
class _Runs:
    """The runs of some masks, one row per run, in order."""

    mask: NDArray[np.int64]  # index of the mask
    position: NDArray[np.int64]  # 0, 1, ... within the mask; odd runs are ones
    length: NDArray[np.int64]  # pixels
    end: NDArray[np.int64]  # pixels from the start of the mask to the end of the run
    faults: dict[int, str]  # faults of invalid masks, by index of the mask


def _runs(counts: Sequence[bytes], heights: NDArray[np.int64], widths: NDArray[np.int64]) -> _Runs:
    """Parses counts in the format of `rleToString` in maskApi.c of pycocotools.

    Numbers are two's complement, five bits per character, lowest bits first. The character code is 48 + bits, + 32 if
    more characters of the number follow. From the fourth number on, the difference from the number two before is
    stored.
    """
    faults: dict[int, str] = {}
    sound = list(counts)
    for index, text in enumerate(counts):
        if not text or text.translate(None, _CHARACTERS):
            faults[index] = "is empty or has characters that are not COCO's"
        elif text[-1] - 48 >= 32:
            faults[index] = "ends within a number"
        if index in faults:
            sound[index] = b"0"
    digit = np.frombuffer(b"".join(sound), np.uint8) - 48
    last = np.flatnonzero(digit < 32)
    first = np.concatenate([[0], last[:-1] + 1])[: len(last)]
    starts = np.searchsorted(
        first, np.cumsum([0, *map(len, sound)])
    )  # index of the first number of each mask, and the end
    mask = np.repeat(np.arange(len(sound)), np.diff(starts))
    position = np.arange(len(first)) - np.repeat(starts[:-1], np.diff(starts))
    digits = last - first + 1
    _add_fault(faults, mask[digits > 7], "has a number that is too long")  # more than 35 bits
    digits = np.minimum(digits, 7)
    length = np.zeros(len(first), np.int64)
    for place in range(7):
        longer = np.flatnonzero(digits > place)
        length[longer] |= (digit[first[longer] + place] & 31).astype(np.int64) << 5 * place
    length -= (digit[last] & 16).astype(np.int64) << 5 * digits - 4
    for lane in (1, 2):
        of_lane = np.flatnonzero((position % 2 == lane % 2) & (position > 0))
        length[of_lane] = _cumsum_within(length[of_lane], mask[of_lane])
    _add_fault(faults, mask[length < 0], "has a run of negative length")
    end = _cumsum_within(length, mask)
    for index, total in enumerate(end[starts[1:] - 1]):
        if total != (pixels := int(heights[index]) * int(widths[index])):
            faults.setdefault(index, f"covers {total} pixels of {pixels}")
    return _Runs(mask, position, length, end, faults)


def _add_fault(faults: dict[int, str], masks: NDArray[np.int64], reason: str) -> None:
    for index in np.unique(masks):
        faults.setdefault(int(index), reason)


def _firsts(group: NDArray[np.int64]) -> NDArray[np.int64]:
    """The index of the first row of each group. Rows of a group are adjacent."""
    return np.flatnonzero(np.diff(group, prepend=-1))


def _cumsum_within(value: NDArray[np.int64], group: NDArray[np.int64]) -> NDArray[np.int64]:
    """The cumulative sum within each group."""
    total, first = value.cumsum(), _firsts(group)
    return total - np.repeat(total[first] - value[first], np.diff(first, append=len(group)))
