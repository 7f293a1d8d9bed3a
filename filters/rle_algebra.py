"""Measurements and set operations on compressed RLEs, without decoding them to pixels: Numba kernels for many masks.

Functions take one mask, or one pair of masks, per row of a batch (`Packed`, the layout of a binary column of Arrow). A
mask that occurs in several rows is parsed once. Counts that are no mask of the given size raise ValueError.

The kernels see a mask as its intervals: the runs of ones as [start, stop) in pixels, column by column, sorted, neither
empty nor adjacent.

Shapes: K rows, D distinct masks, n intervals, S segments (intervals cut at the ends of columns), P polygon corners.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from maskmill.compiled import njit
from maskmill.filters import rle

Ints = NDArray[np.int64]
Polygon = list[NDArray[np.int32]]  # the outline, then the holes: corners (P, 2) as x, y, the first one not repeated

MAX_PIXELS = 2**31 - 1  # positions are int32


@dataclass(frozen=True, eq=False)
class Packed:
    """The counts of K masks in one buffer."""

    text: NDArray[np.uint8]
    offsets: Ints  # (K + 1,) mask k is text[offsets[k] : offsets[k + 1]]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, k: int) -> bytes:
        return self.text[self.offsets[k] : self.offsets[k + 1]].tobytes()


class Operation(IntEnum):
    """A set operation on two masks."""

    INTERSECTION = 0
    UNION = 1
    DIFFERENCE = 2


INTERSECTION, UNION, DIFFERENCE = Operation  # Numba compiles them into the kernels


def pack(counts: Sequence[bytes]) -> Packed:
    """The counts of K masks as a batch."""
    return Packed(np.frombuffer(b"".join(counts), np.uint8), np.cumsum([0, *map(len, counts)], dtype=np.int64))


def area(masks: Packed) -> Ints:
    """The number of pixels (K,) of each mask. The size of the image is not needed, and not checked."""
    area_K, fault = _area(masks.text, masks.offsets)
    _check(masks, fault)
    return area_K


def boxes(masks: Packed, heights: Ints, widths: Ints) -> Ints:
    """The boxes (K, 4) as in the tables: XYWH, w = x1 - x0; zeros for an empty mask."""
    read = _read_checked(masks, heights, widths)
    x0, y0, x1, y1 = read.box_D4[read.which_K].astype(np.int64).T
    return np.stack([x0, y0, x1 - x0, y1 - y0], axis=1)


def iou(a: Packed, b: Packed, heights: Ints, widths: Ints) -> NDArray[np.float64]:
    """The IoU (K,) of each pair; 0 for two empty masks, as pycocotools has it."""
    read_a, read_b = (_read_checked(masks, heights, widths) for masks in (a, b))
    both_K = _overlaps(read_a, read_b)
    either_K = read_a.area_D[read_a.which_K] + read_b.area_D[read_b.which_K] - both_K
    return both_K / np.maximum(either_K, 1)


def iou_matrix(counts_N: Sequence[bytes], counts_M: Sequence[bytes], height: int, width: int) -> NDArray[np.float64]:
    """The IoU (N, M) of each of N masks with each of M masks of the same image."""

    def read(counts: Sequence[bytes]) -> tuple[_Read, _Bits]:
        masks = _read_checked(pack(counts), np.full(len(counts), height), np.full(len(counts), width))
        return masks, _bits(masks.first_D1, masks.bounds_n2)

    is_symmetric = counts_M is counts_N
    (a, bits_a), (b, bits_b) = [read(counts_N)] * 2 if is_symmetric else (read(counts_N), read(counts_M))
    both_NM = np.zeros((len(counts_N), len(counts_M)), np.int64)
    for start in range(0, len(counts_M), _COLUMNS_PER_BLOCK):
        end = start + _COLUMNS_PER_BLOCK
        block = np.s_[: end if is_symmetric else None, start:end]
        rows, columns = np.meshgrid(a.which_K[block[0]], b.which_K[block[1]], indexing="ij")
        arrays = *a.of(rows.ravel()).arrays, a.box_D4, bits_a, *b.of(columns.ravel()).arrays, b.box_D4, bits_b
        both_NM[block] = _common(*arrays).reshape(rows.shape)
    if is_symmetric:
        both_NM = np.maximum(both_NM, both_NM.T)
    either_NM = a.area_D[a.which_K][:, None] + b.area_D[b.which_K] - both_NM
    return both_NM / np.maximum(either_NM, 1)


def contains(a: Packed, b: Packed, heights: Ints, widths: Ints) -> NDArray[np.float64]:
    """The share (K,) of the pixels of b that are in a; 0 if b is empty."""
    read_a, read_b = (_read_checked(masks, heights, widths) for masks in (a, b))
    return _overlaps(read_a, read_b) / np.maximum(read_b.area_D[read_b.which_K], 1)


def combine(operation: Operation, a: Packed, b: Packed, heights: Ints, widths: Ints) -> Packed:
    """The counts (K,) of the intersection, union or difference (a without b) of each pair, as pycocotools encodes."""
    read_a, read_b = (_read_checked(masks, heights, widths) for masks in (a, b))
    return Packed(*_combine(operation, *read_a.arrays, *read_b.arrays, heights * widths))


def at(masks: Packed, heights: Ints, widths: Ints, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether each mask (K,) has the pixel that contains the point; False outside the image."""
    read = _read_checked(masks, heights, widths)
    inside_K = (x >= 0) & (x < widths) & (y >= 0) & (y < heights)
    position_K = np.where(inside_K, np.floor(x) * heights + np.floor(y), -1).astype(np.int64)
    return _at(*read.arrays, position_K)


def components(masks: Packed, heights: Ints, widths: Ints) -> Ints:
    """The number (K,) of connected parts of each mask. Pixels that touch at a corner are connected."""
    return _count_parts(masks, heights, widths, holes=False)


def holes(masks: Packed, heights: Ints, widths: Ints) -> Ints:
    """The number (K,) of holes of each mask: regions outside the mask that do not reach the border of the image.

    Pixels of a hole are connected through their sides.
    """
    return _count_parts(masks, heights, widths, holes=True)


def polygons(counts: bytes, height: int, width: int) -> list[Polygon]:
    """The exact outlines of a mask, along the sides of pixels: polygons that cover its pixels and no others.

    A polygon has no corner twice, so parts that touch only at a corner are polygons of their own. Outlines are
    counter-clockwise if y pointed up (their shoelace sum is positive), holes clockwise, as GeoJSON wants them.
    """
    read = _read_checked(pack([counts]), np.array([height]), np.array([width]))
    corners_P2, ends, hole, part = _trace(read.bounds_n2, height)
    outlines: dict[int, Polygon] = {}
    rings = [corners_P2[start:end] for start, end in pairwise([0, *ends.tolist()])]
    for ring in np.flatnonzero(~hole).tolist():
        outlines[part[ring]] = [rings[ring]]
    for ring in np.flatnonzero(hole).tolist():
        outlines[part[ring]].append(rings[ring])
    return list(outlines.values())


# Parsing.


@dataclass(frozen=True, eq=False)
class _Read:
    """The D distinct masks of a batch."""

    which_K: NDArray[np.int32]  # the distinct mask of each row
    first_D1: Ints  # mask d has the intervals first_D1[d] : first_D1[d + 1]
    bounds_n2: NDArray[np.int32]  # the intervals: start, stop
    box_D4: NDArray[np.int32]  # x0, y0, x1, y1 of the first and last pixels; zeros for an empty mask
    area_D: Ints  # pixels
    height_D: Ints  # of the image

    @property
    def arrays(self) -> tuple[Any, ...]:
        return self.which_K, self.first_D1, self.bounds_n2

    def of(self, which: NDArray[np.int32]) -> _Read:
        """A batch of these masks."""
        return replace(self, which_K=which)


def _read_checked(masks: Packed, heights: Ints, widths: Ints) -> _Read:
    which_K, first_D1, bounds_n2, box_D4, area_D, owner_D, fault = _read(masks.text, masks.offsets, heights, widths)
    _check(masks, fault, heights, widths)
    return _Read(which_K, first_D1, bounds_n2, box_D4, area_D, heights[owner_D])


def _check(masks: Packed, fault: int, heights: Ints | None = None, widths: Ints | None = None) -> None:
    """Raises ValueError if `fault` is the row of a mask that cannot be read; -1 if there is none."""
    if fault < 0:
        return
    counts = masks[fault]
    height, width = (np.array([0]) if sides is None else sides[fault : fault + 1] for sides in (heights, widths))
    if height[0] * width[0] > MAX_PIXELS:
        raise ValueError(f"a mask of {width[0]} x {height[0]} pixels: the limit is {MAX_PIXELS} pixels")
    reason = rle.measure([counts], height, width)[2][0]
    shown = counts[:40].decode("ascii", "backslashreplace") + "..." * (len(counts) > 40)
    raise ValueError(f"these counts are no mask: the RLE {reason}: {shown!r}")


@njit()
def _number(text, position, stop):
    """The number at `position` (see filters.rle._runs), and the position after it; -1 if there is no valid number."""
    value, place, more = np.int64(0), np.int64(0), True
    while more:
        if position >= stop or place > 30:
            return value, np.int64(-1)
        bits = np.int64(text[position]) - 48
        if bits < 0 or bits > 63:
            return value, np.int64(-1)
        value |= (bits & 31) << place
        more = bits & 32 != 0
        if not more and bits & 16 != 0:
            value |= np.int64(-1) << (place + 5)
        place += 5
        position += 1
    return value, position


@njit()
def _area(text, offsets):
    area_K = np.zeros(len(offsets) - 1, np.int64)
    for k in range(len(area_K)):
        position, stop = offsets[k], offsets[k + 1]
        run, before, last = 0, np.int64(0), np.int64(0)
        if position == stop:
            return area_K, k
        while position < stop:
            length, position = _number(text, position, stop)
            length += before if run > 2 else 0
            if position < 0 or length < 0:
                return area_K, k
            area_K[k] += length if run % 2 else 0
            before, last = last, length
            run += 1
    return area_K, -1


@njit()
def _parse(text, position, stop, height, width, bounds_n2, n, box_4):
    """Appends the intervals of one mask to `bounds_n2` from n on and fills its box (4,). Returns the new n, the area.

    Returns -1 for n if the text is no mask of this size.
    """
    pixels, first = height * width, n
    end, run, area = np.int64(0), 0, np.int64(0)
    before, last = np.int64(0), np.int64(0)  # the lengths of the last two runs
    column = np.int64(0)  # first position of the current column
    y0, y1 = height, np.int64(-1)
    if position == stop or pixels > MAX_PIXELS:
        return np.int64(-1), area
    while position < stop:
        length, position = _number(text, position, stop)
        length += before if run > 2 else 0
        if position < 0 or length < 0 or end + length > pixels:
            return np.int64(-1), area
        if run % 2 and length > 0:
            area += length
            if n > first and bounds_n2[n - 1, 1] == end:
                bounds_n2[n - 1, 1] = end + length
            else:
                bounds_n2[n, 0], bounds_n2[n, 1] = end, end + length
                n += 1
            while column + height <= end:
                column += height
            if end + length > column + height:  # continues in the next column
                y0, y1 = np.int64(0), height - 1
            else:
                y0, y1 = min(y0, end - column), max(y1, end + length - 1 - column)
        end += length
        before, last = last, length
        run += 1
    if end != pixels:
        return np.int64(-1), area
    if n > first:
        box_4[0], box_4[1] = bounds_n2[first, 0] // height, y0
        box_4[2], box_4[3] = (bounds_n2[n - 1, 1] - 1) // height, y1
    else:
        box_4[:] = 0
    return n, area


@njit()
def _equal(text, offsets, heights, widths, i, j):
    """Whether rows i and j have the same mask."""
    a, b = text[offsets[i] : offsets[i + 1]], text[offsets[j] : offsets[j + 1]]
    if len(a) != len(b) or heights[i] != heights[j] or widths[i] != widths[j]:
        return False
    different = np.uint8(0)
    for n in range(np.uint64(len(a))):  # LLVM does not vectorise loops with an index that might be negative
        different |= a[n] ^ b[n]
    return different == 0


@njit()
def _hash(text, offsets, k):
    """A hash of the length of mask k and of its first and last 16 characters, which touch few cache lines."""
    start, stop = offsets[k], offsets[k + 1]
    value = np.uint64(stop - start)
    for n in range(min(16, stop - start)):
        ends = np.uint64(text[start + n]) << np.uint64(8) | np.uint64(text[stop - 1 - n])
        value = (value ^ ends) * np.uint64(0x100000001B3)  # FNV-1a
    return value ^ (value >> np.uint64(32))


@njit()
def _read(text, offsets, heights, widths):
    """The arrays of `_Read`, a row of each distinct mask, and the first row with counts that are no mask, or -1."""
    K = len(offsets) - 1
    which_K, owner_D, table = np.empty(K, np.int32), np.empty(K, np.int64), np.full(_table_size(K), -1, np.int32)
    first_D1, box_D4, area_D = np.zeros(K + 1, np.int64), np.empty((K, 4), np.int32), np.empty(K, np.int64)
    bounds_n2 = np.empty(((offsets[K] - offsets[0]) // 2 + 1, 2), np.int32)  # only memory that is written is used
    D, fault = 0, -1
    for k in range(K):
        slot = np.int64(_hash(text, offsets, k) & np.uint64(len(table) - 1))
        while table[slot] >= 0 and not _equal(text, offsets, heights, widths, k, owner_D[table[slot]]):
            slot = (slot + 1) & (len(table) - 1)
        if table[slot] < 0:
            n, area = _parse(text, offsets[k], offsets[k + 1], heights[k], widths[k], bounds_n2, first_D1[D], box_D4[D])
            if n < 0:
                fault = k
                break
            table[slot], owner_D[D], first_D1[D + 1], area_D[D] = D, k, n, area
            D += 1
        which_K[k] = table[slot]
    return which_K, first_D1[: D + 1], bounds_n2[: first_D1[D]], box_D4[:D], area_D[:D], owner_D[:D], fault


@njit()
def _table_size(rows):
    """A power of two, at least twice the number of rows."""
    size = 2
    while size < 2 * rows:
        size *= 2
    return size


# Pairs.


def _overlaps(a: _Read, b: _Read) -> Ints:
    """The number of common pixels (K,) of each pair."""
    bits_a = bits_b = _NO_BITS
    if len(a.which_K) >= 2 * (len(a.area_D) + len(b.area_D)):  # bits pay if masks are in several pairs
        bits_a, bits_b = (_bits(read.first_D1, read.bounds_n2) for read in (a, b))
    return _common(*a.arrays, a.box_D4, bits_a, *b.arrays, b.box_D4, bits_b)


class _Bits(NamedTuple):
    """Masks as one bit per pixel, from the first pixel of each to its last, in words of 64 pixels of the image."""

    range_D2: Ints  # the first word of mask d, and the end; counted in the image
    start_D: Ints  # the index of that word in `words`; -1 if the bits of the mask are not stored
    words: NDArray[np.uint64]


_NO_BITS = _Bits(np.zeros((0, 2), np.int64), np.zeros(0, np.int64), np.zeros(0, np.uint64))
_MAX_WORDS = 2**25  # 256 MB
# A loop over two bit masks handles about this many words in the time that it takes to go one interval further.
_WORDS_PER_INTERVAL = 16
_COLUMNS_PER_BLOCK = 8  # of a matrix of pairs: their bits stay in the cache


def _generate_popcount(typing_context: Any, value: Any) -> Any:
    """The number of ones in a uint64. LLVM vectorises loops with it."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


_popcount: Any = intrinsic(_generate_popcount)


@njit()
def _common(which_a, first_a, bounds_a, box_a, bits_a, which_b, first_b, bounds_b, box_b, bits_b):
    common_K = np.zeros(len(which_a), np.int64)
    has_bits = len(bits_a.start_D) > 0
    for k in range(len(which_a)):
        a, b = which_a[k], which_b[k]
        x0, x1 = max(box_a[a, 0], box_b[b, 0]), min(box_a[a, 2], box_b[b, 2])
        y0, y1 = max(box_a[a, 1], box_b[b, 1]), min(box_a[a, 3], box_b[b, 3])
        if x0 > x1 or y0 > y1 or first_a[a] == first_a[a + 1] or first_b[b] == first_b[b + 1]:
            continue
        a_n2, b_n2 = bounds_a[first_a[a] : first_a[a + 1]], bounds_b[first_b[b] : first_b[b + 1]]
        if has_bits and bits_a.start_D[a] >= 0 and bits_b.start_D[b] >= 0:
            first = max(bits_a.range_D2[a, 0], bits_b.range_D2[b, 0])
            end = min(bits_a.range_D2[a, 1], bits_b.range_D2[b, 1])
            if end - first <= _WORDS_PER_INTERVAL * (len(a_n2) + len(b_n2)):
                common_K[k] = _common_of_bits(bits_a, a, bits_b, b, first, end)
                continue
        common_K[k] = _common_of_intervals(a_n2, b_n2)
    return common_K


@njit()
def _common_of_bits(bits_a, a, bits_b, b, first, end):
    words_a = bits_a.words[bits_a.start_D[a] + first - bits_a.range_D2[a, 0] :]
    words_b = bits_b.words[bits_b.start_D[b] + first - bits_b.range_D2[b, 0] :]
    common = np.uint64(0)
    for n in range(np.uint64(max(0, end - first))):
        common += _popcount(words_a[n] & words_b[n])
    return np.int64(common)


@njit()
def _common_of_intervals(a_n2, b_n2):
    i, j, common = _skip(a_n2, 0, len(a_n2), b_n2[0, 0]), _skip(b_n2, 0, len(b_n2), a_n2[0, 0]), np.int64(0)
    while i < len(a_n2) and j < len(b_n2):
        stop_i, stop_j = a_n2[i, 1], b_n2[j, 1]
        common += max(min(stop_i, stop_j) - max(a_n2[i, 0], b_n2[j, 0]), 0)
        # Without branches: which interval ends first cannot be predicted.
        i_ends_first = np.int64(stop_i < stop_j)
        i += i_ends_first
        j += 1 - i_ends_first
    return common


@njit()
def _bits(first_D1, bounds_n2):
    """The `_Bits` of masks, as many as fit into the limit."""
    D = len(first_D1) - 1
    range_D2, start_D, size = np.zeros((D, 2), np.int64), np.full(D, -1, np.int64), np.int64(0)
    for d in range(D):
        if first_D1[d] < first_D1[d + 1]:
            range_D2[d, 0] = bounds_n2[first_D1[d], 0] // 64
            range_D2[d, 1] = (bounds_n2[first_D1[d + 1] - 1, 1] + 63) // 64
            words = range_D2[d, 1] - range_D2[d, 0]
            if size + words <= _MAX_WORDS:
                start_D[d], size = size, size + words
    words, ones = np.zeros(size, np.uint64), ~np.uint64(0)
    for d in range(D):
        if start_D[d] >= 0:
            mask = words[start_D[d] :]
            for n in range(first_D1[d], first_D1[d + 1]):
                start = np.int64(bounds_n2[n, 0]) - 64 * range_D2[d, 0]
                last = np.int64(bounds_n2[n, 1]) - 64 * range_D2[d, 0] - 1
                w, v = start // 64, last // 64
                head, tail = ones << np.uint64(start % 64), ones >> np.uint64(63 - last % 64)
                if w == v:
                    mask[w] |= head & tail
                else:
                    mask[w] |= head
                    mask[w + 1 : v] = ones
                    mask[v] |= tail
    return _Bits(range_D2, start_D, words)


@njit()
def _skip(bounds_n2, n, end, position):
    """The first interval from n on that stops after `position`."""
    while n < end:
        middle = (n + end) // 2
        if bounds_n2[middle, 1] <= position:
            n = middle + 1
        else:
            end = middle
    return n


@njit()
def _combine(operation, which_a, first_a, bounds_a, which_b, first_b, bounds_b, pixels_K):
    K = len(which_a)
    offsets, capacity, longest = np.zeros(K + 1, np.int64), np.int64(0), np.int64(0)
    for k in range(K):
        n = first_a[which_a[k] + 1] - first_a[which_a[k]] + first_b[which_b[k] + 1] - first_b[which_b[k]]
        longest = max(longest, n)
        capacity += 7 * (2 * n + 1)  # characters: at most 7 per run
    text, bounds_n2 = np.empty(capacity, np.uint8), np.empty((longest + 1, 2), np.int32)
    for k in range(K):
        a, b = which_a[k], which_b[k]
        n = _combine_pair(
            operation, bounds_a[first_a[a] : first_a[a + 1]], bounds_b[first_b[b] : first_b[b + 1]], bounds_n2
        )
        offsets[k + 1] = _write(bounds_n2[:n], pixels_K[k], text, offsets[k])
    return text[: offsets[K]].copy(), offsets


@njit()
def _combine_pair(operation, a_n2, b_n2, out_n2):
    """Writes the intervals of the result to `out_n2`, visiting all bounds of a and b in order. Returns their number."""
    a, b, n = 0, 0, 0  # numbers of bounds of a and b that were passed; an odd number: inside the mask
    inside = False
    while a < 2 * len(a_n2) or b < 2 * len(b_n2):
        next_a = a_n2[a // 2, a % 2] if a < 2 * len(a_n2) else MAX_PIXELS
        next_b = b_n2[b // 2, b % 2] if b < 2 * len(b_n2) else MAX_PIXELS
        position = min(next_a, next_b)
        a += next_a == position and a < 2 * len(a_n2)
        b += next_b == position and b < 2 * len(b_n2)
        in_a, in_b = a % 2 == 1, b % 2 == 1
        if operation == INTERSECTION:
            now = in_a and in_b
        elif operation == UNION:
            now = in_a or in_b
        else:
            now = in_a and not in_b
        if now != inside:
            out_n2[n, 1 if inside else 0] = position
            n += inside
            inside = now
    return n


@njit()
def _write(bounds_n2, pixels, text, position):
    """Writes the counts of one mask from `position` on, in the format of filters.rle._runs. Returns the end."""
    end, before, last = np.int64(0), np.int64(0), np.int64(0)
    bounds = 2 * len(bounds_n2)
    if bounds > 0 and bounds_n2[-1, 1] == pixels:
        bounds -= 1  # no run of zeros after the last pixel
    for run in range(bounds + 1):
        stop = np.int64(bounds_n2[run // 2, run % 2]) if run < bounds else pixels
        length = stop - end
        number = length - before if run > 2 else length
        more = True
        while more:
            bits = number & 31
            number >>= 5
            more = number != -1 if bits & 16 else number != 0
            text[position] = bits + (32 if more else 0) + 48
            position += 1
        end, before, last = stop, last, length
    return position


@njit()
def _at(which_K, first_D1, bounds_n2, position_K):
    inside_K = np.zeros(len(which_K), np.bool_)
    for k in range(len(which_K)):
        d, position = which_K[k], position_K[k]
        n = _skip(bounds_n2, first_D1[d], first_D1[d + 1], position)
        inside_K[k] = n < first_D1[d + 1] and bounds_n2[n, 0] <= position
    return inside_K


# Connected parts.


def _count_parts(masks: Packed, heights: Ints, widths: Ints, holes: bool) -> Ints:
    read = _read_checked(masks, heights, widths)
    return _parts(read.first_D1, read.bounds_n2, read.box_D4, read.height_D, holes)[read.which_K]


@njit()
def _parts(first_D1, bounds_n2, box_D4, height_D, holes):
    parts_D = np.zeros(len(height_D), np.int64)
    for d in range(len(height_D)):
        mask_n2 = bounds_n2[first_D1[d] : first_D1[d + 1]]
        if len(mask_n2) > 0:
            columns, segments_S2 = _segments(mask_n2, height_D[d], box_D4[d, 0], box_D4[d, 2])
            if holes:
                parts_D[d] = _count_holes(columns, segments_S2, height_D[d])
            else:
                _, parts_D[d] = _connect(columns, segments_S2, True)
    return parts_D


@njit()
def _segments(mask_n2, height, x0, x1):
    """The segments [y, y) (S, 2) of columns x0 to x1, and the index of the first segment of each column, and S."""
    columns = np.zeros(x1 - x0 + 2, np.int64)
    segments_S2 = np.empty((len(mask_n2) + x1 - x0 + 1, 2), np.int64)
    S, x = 0, np.int64(x0)
    for n in range(len(mask_n2)):
        start, stop = np.int64(mask_n2[n, 0]), np.int64(mask_n2[n, 1])
        while start < stop:
            while (x + 1) * height <= start:
                x += 1
                columns[x - x0] = S
            end = min(stop, (x + 1) * height)
            segments_S2[S, 0], segments_S2[S, 1] = start - x * height, end - x * height
            S += 1
            start = end
    columns[x1 - x0 + 1] = S
    return columns, segments_S2[:S]


@njit()
def _connect(columns, segments_S2, corners):
    """The part of each segment (S,) and the number of parts. `corners`: a common corner connects, too."""
    parent = np.arange(len(segments_S2))
    parts = len(segments_S2)
    reach = np.int64(1) if corners else np.int64(0)
    for c in range(len(columns) - 2):
        i, end_i, j, end_j = columns[c], columns[c + 1], columns[c + 1], columns[c + 2]
        while i < end_i and j < end_j:
            if segments_S2[i, 0] < segments_S2[j, 1] + reach and segments_S2[j, 0] < segments_S2[i, 1] + reach:
                a, b = _root(parent, i), _root(parent, j)
                parent[max(a, b)] = min(a, b)
                parts -= a != b
            if segments_S2[i, 1] < segments_S2[j, 1]:
                i += 1
            else:
                j += 1
    for s in range(len(parent)):
        parent[s] = _root(parent, s)
    return parent, parts


@njit()
def _root(parent, s):
    while parent[s] != s:
        parent[s] = parent[parent[s]]
        s = parent[s]
    return s


@njit()
def _count_holes(columns, segments_S2, height):
    """Connects the gaps between segments. Gaps in the first and last column, and at the border, are not in a hole."""
    C = len(columns) - 1
    gap_columns, gaps = np.zeros(C + 1, np.int64), np.empty((len(segments_S2) + C, 2), np.int64)
    open_gap = np.zeros(len(gaps), np.bool_)
    G = 0
    for c in range(C):
        y = np.int64(0)
        for s in range(columns[c], columns[c + 1] + 1):
            end = segments_S2[s, 0] if s < columns[c + 1] else height
            if end > y:
                gaps[G, 0], gaps[G, 1] = y, end
                open_gap[G] = y == 0 or end == height or c == 0 or c == C - 1
                G += 1
            y = segments_S2[s, 1] if s < columns[c + 1] else height
        gap_columns[c + 1] = G
    part, parts = _connect(gap_columns, gaps[:G], False)
    outside = np.zeros(G, np.bool_)
    for g in range(G):
        if open_gap[g] and not outside[part[g]]:
            outside[part[g]] = True
            parts -= 1
    return parts


# Outlines.


@njit()
def _trace(mask_n2, height):
    """The rings of a mask: corners (P, 2), the end of each ring, whether it is a hole, and the part that it belongs to.

    The outline is a set of directed edges with the mask on their right as y points down. Following them makes closed
    walks, which are cut where they meet a corner again.
    """
    if len(mask_n2) == 0:
        return np.empty((0, 2), np.int32), np.empty(0, np.int64), np.empty(0, np.bool_), np.empty(0, np.int64)
    x0, x1 = np.int64(mask_n2[0, 0]) // height, np.int64(mask_n2[-1, 1] - 1) // height
    columns, segments_S2 = _segments(mask_n2, height, x0, x1)
    part_S, _ = _connect(columns, segments_S2, False)
    edges, owner = _edges(columns, segments_S2, x0)
    E = len(edges)
    stride = height + 1
    starts = edges[:, 0] * stride + edges[:, 1]
    order = np.argsort(starts, kind="mergesort")
    starts = starts[order]
    follower = np.empty(E, np.int64)
    for e in range(E):
        corner = edges[e, 2] * stride + edges[e, 3]
        n = np.searchsorted(starts, corner)
        # Two edges start at a corner where two pixels touch that share no side: stay with the pixel of this edge.
        n += n + 1 < E and starts[n + 1] == corner and owner[order[n]] != owner[e]
        follower[e] = order[n]
    corners_P2, P = np.empty((E, 2), np.int32), 0
    ends, hole, part, rings = np.empty(E, np.int64), np.empty(E, np.bool_), np.empty(E, np.int64), 0
    done, walk = np.zeros(E, np.bool_), np.empty(E, np.int64)
    on_walk = np.full(E, -1, np.int64)  # by the first edge in `order` that starts at a corner: position on the walk
    for first in range(E):
        if done[first]:
            continue
        length, e = 0, first
        while True:
            corner = np.searchsorted(starts, edges[e, 0] * stride + edges[e, 1])
            if on_walk[corner] >= 0:  # this corner again: cut off the ring since then
                begin = on_walk[corner]
                P = _write_ring(edges, walk[begin:length], corners_P2, P)
                double_area = np.int64(0)
                for n in range(begin, length):
                    x, y, x_next, y_next = edges[walk[n]]
                    double_area += x * y_next - x_next * y
                    on_walk[np.searchsorted(starts, x * stride + y)] = -1
                ends[rings], hole[rings], part[rings] = P, double_area < 0, part_S[owner[walk[begin]]]
                rings += 1
                length = begin
            if done[e]:
                break
            done[e] = True
            on_walk[corner] = length
            walk[length] = e
            length += 1
            e = follower[e]
    return corners_P2[:P], ends[:rings], hole[:rings], part[:rings]


@njit()
def _write_ring(edges, ring, corners_P2, P):
    """Appends the corners of a ring, leaving out those where it goes straight on. Returns the new P."""
    for n in range(len(ring)):
        x, y, x_next, _ = edges[ring[n]]
        if (x == edges[ring[n - 1], 0]) != (x == x_next):
            corners_P2[P, 0], corners_P2[P, 1] = x, y
            P += 1
    return P


@njit()
def _edges(columns, segments_S2, x0):
    """The edges (E, 4) of the outline as x, y, x, y, and the segment (E,) on the inner side of each."""
    C, S = len(columns) - 1, len(segments_S2)
    edges, owner = np.empty((6 * S + 2, 4), np.int64), np.empty(6 * S + 2, np.int64)
    E = 0
    for c in range(C):
        for s in range(columns[c], columns[c + 1]):
            top, bottom, x = segments_S2[s, 0], segments_S2[s, 1], x0 + c
            edges[E], owner[E] = (x, top, x + 1, top), s
            edges[E + 1], owner[E + 1] = (x + 1, bottom, x, bottom), s
            E += 2
    for c in range(C + 1):  # the line between columns c - 1 and c
        x = x0 + c
        i, end_i = (columns[c - 1], columns[c]) if c > 0 else (np.int64(0), np.int64(0))
        j, end_j = (columns[c], columns[c + 1]) if c < C else (np.int64(0), np.int64(0))
        y = np.int64(-1)
        in_i = in_j = False
        while i < end_i or j < end_j:
            next_i = segments_S2[i, 1 if in_i else 0] if i < end_i else np.int64(MAX_PIXELS)
            next_j = segments_S2[j, 1 if in_j else 0] if j < end_j else np.int64(MAX_PIXELS)
            next_y = min(next_i, next_j)
            if in_i and not in_j:
                edges[E], owner[E] = (x, y, x, next_y), i
                E += 1
            elif in_j and not in_i:
                edges[E], owner[E] = (x, next_y, x, y), j
                E += 1
            if next_i == next_y:
                i += in_i
                in_i = not in_i
            if next_j == next_y:
                j += in_j
                in_j = not in_j
            y = next_y
    return edges[:E], owner[:E]
