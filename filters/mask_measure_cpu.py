"""`filters.mask_measure` on a CPU: Numba kernels that interpolate pixels without storing the full-resolution logits.

Pixels are interpolated only if their neighbouring logits are on both sides of a threshold, one row at a time in the CPU
cache. The arithmetic is that of `torch.nn.functional.interpolate`, in the same order, so the pixels are bit-identical.
(Exception: if height + width of a crop is at most 128 pixels, torch adds in another order, and the last bits differ.)

A cell is the area between neighbouring low-resolution logits: row i of the cells holds the crop rows that are
interpolated from logit rows i to i + 2 (`filters.upsampling.Upsampling.row_cells`).

Shapes: K masks, h w low-resolution logits, S side of the network input, H W crop in pixels, E crop rows of one row of
cells, F input rows that they are interpolated from.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray
from torch import Tensor

from maskmill.compiled import njit
from maskmill.filters.upsampling import Upsampling

# Kinds of spans of pixels: all at most the lower threshold; all above the upper threshold; undecided until
# interpolated. numba compiles these constants into the kernels. END follows the last span of a row.
OUTSIDE, INSIDE, MIXED, END = (np.int32(kind) for kind in range(4))


def measure(logits_Khw: Tensor, upsampling: Upsampling, offset: float, margin: float) -> tuple[Tensor, Tensor]:
    """Implements `filters.mask_measure.measure`.

    Returns the number of pixels (K, 3) above `offset`, `-offset` and 0, and the boxes (K, 2, 4) of the pixels above
    `-margin` and above `margin`. A box without pixels has x0 > x1.
    """
    logits = logits_Khw.numpy()
    counts_K3 = np.zeros((len(logits), 3), np.int64)
    boxes_K24 = np.empty((len(logits), 2, 4), np.int64)
    _measure(logits, upsampling, offset, margin, counts_K3, boxes_K24)
    return torch.from_numpy(counts_K3), torch.from_numpy(boxes_K24)


def find_changes(logits_Khw: Tensor, upsampling: Upsampling, offset: int, stride: int) -> list[NDArray[np.int64]]:
    """The sorted positions `offset + x * stride + y` at which the value of each mask changes along its columns.

    A position occurs twice if the mask continues from the end of one column to the start of the next.
    """
    return [_changes(logits_hw, upsampling, offset, stride) for logits_hw in logits_Khw.numpy()]


class _Buffers(NamedTuple):
    spans_w3: Any
    bounds_2w: Any
    kinds_w: Any
    coarse_3S: Any
    input_S: Any
    fine_FW: Any
    pixels_EW: Any


def _generate_fma(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
    """Fused multiply-add: a * b + c with one rounding."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        return builder.fma(*arguments)

    return types.float32(types.float32, types.float32, types.float32), generate


_fma: Any = intrinsic(_generate_fma)


# Loops over pixels count in uint64: LLVM does not vectorise loops with an index that might be negative.


@njit()
def _buffers(upsampling):
    """Allocates buffers for one row of cells: pixels and intermediate results of the interpolation."""
    h, S, W = len(upsampling.row_cells) - 1, len(upsampling.to_input.near), len(upsampling.columns.near)
    return _Buffers(
        spans_w3=np.empty((h, 3), np.int64),
        bounds_2w=np.empty((2, h + 2), np.float32),
        kinds_w=np.empty(h + 1, np.int32),
        coarse_3S=np.empty((3, S), np.float32),
        input_S=np.empty(S, np.float32),
        fine_FW=np.empty((np.bincount(upsampling.to_input.near).max() + 1, W), np.float32),
        pixels_EW=np.empty((np.diff(upsampling.row_cells).max(), W), np.float32),
    )


@njit()
def _find_spans(logits_hw, upsampling, i, low, high, buffers):
    """Fills `spans_w3` with the spans (kind, x0, x1) of pixel columns in row i of the cells. Returns their number.

    Spans in which all logits, and therefore all pixels, are at most `low` are left out.
    """
    h, w = logits_hw.shape
    (highest, lowest), kinds = buffers.bounds_2w, buffers.kinds_w
    one, two = np.uint64(1), np.uint64(2)
    upper, middle, lower = logits_hw[i], logits_hw[min(i + 1, h - 1)], logits_hw[min(i + 2, h - 1)]
    any_above = False
    for j in range(np.uint64(w)):
        a, b, c = upper[j], middle[j], lower[j]
        most, least = (a, b) if a > b else (b, a)
        most, least = c if c > most else most, c if c < least else least
        highest[j], lowest[j] = most, least
        any_above |= most > low
    if not any_above:
        return 0
    highest[w:], lowest[w:] = highest[w - 1], lowest[w - 1]
    for j in range(np.uint64(w)):
        most = highest[j] if highest[j] > highest[j + one] else highest[j + one]
        least = lowest[j] if lowest[j] < lowest[j + one] else lowest[j + one]
        most = most if most > highest[j + two] else highest[j + two]
        least = least if least < lowest[j + two] else lowest[j + two]
        kinds[j] = (MIXED if most > low else OUTSIDE) if least <= high else INSIDE
    kinds[w] = END
    spans, first = 0, np.uint64(0)
    for j in range(np.uint64(w)):
        if kinds[j] == kinds[j + one]:
            continue
        x0, x1 = upsampling.column_cells[first], upsampling.column_cells[j + one]
        if kinds[j] != OUTSIDE and x0 < x1:
            span = buffers.spans_w3[spans]
            span[0], span[1], span[2] = kinds[j], x0, x1
            spans += 1
        first = j + one
    return spans


@njit()
def _interpolate(logits_hw, upsampling, i, x0, x1, buffers):
    """Interpolates row i of the cells, columns x0 to x1, into `pixels_EW`."""
    to_input, rows, columns = upsampling.to_input, upsampling.rows, upsampling.columns
    coarse_3S, input_S, fine_FW, pixels_EW = buffers.coarse_3S, buffers.input_S, buffers.fine_FW, buffers.pixels_EW
    y0, y1 = upsampling.row_cells[i], upsampling.row_cells[i + 1]
    first, last = np.int64(rows.near[y0]), np.int64(rows.far[y1 - 1])
    left, right = np.uint64(columns.near[x0]), np.uint64(columns.far[x1 - 1] + 1)
    for k in range(to_input.far[last] - i + 1):
        for x in range(left, right):
            near, far = logits_hw[i + k, to_input.near[x]], logits_hw[i + k, to_input.far[x]]
            coarse_3S[k, x] = _fma(near, to_input.near_weight[x], far * to_input.far_weight[x])
    for r in range(first, last + 1):
        a, b = to_input.near[r] - i, to_input.far[r] - i
        a_weight, b_weight = to_input.near_weight[r], to_input.far_weight[r]
        for x in range(left, right):
            input_S[x] = _fma(coarse_3S[a, x], a_weight, coarse_3S[b, x] * b_weight)
        for x in range(np.uint64(x0), np.uint64(x1)):
            near, far = input_S[columns.near[x]], input_S[columns.far[x]]
            fine_FW[r - first, x] = _fma(near, columns.near_weight[x], far * columns.far_weight[x])
    for y in range(y0, y1):
        a, b = rows.near[y] - first, rows.far[y] - first
        a_weight, b_weight = rows.near_weight[y], rows.far_weight[y]
        for x in range(np.uint64(x0), np.uint64(x1)):
            pixels_EW[y - y0, x] = _fma(fine_FW[a, x], a_weight, fine_FW[b, x] * b_weight)


@njit()
def _widen(box_4, row_W, y, x0, x1, threshold):
    """Extends an inclusive box by the pixels above the threshold in row y, columns x0 to x1. There is at least one."""
    first, last = x0, x1 - 1
    while first < box_4[0] and row_W[first] <= threshold:
        first += 1
    while last > box_4[2] and row_W[last] <= threshold:
        last -= 1
    box_4[0], box_4[1] = min(box_4[0], first), min(box_4[1], y)
    box_4[2], box_4[3] = max(box_4[2], last), max(box_4[3], y)


@njit()
def _measure(logits_Khw, upsampling, offset, margin, counts_K3, boxes_K24):
    buffers = _buffers(upsampling)
    pixels_EW = buffers.pixels_EW
    offset, margin, zero = np.float32(offset), np.float32(margin), np.float32(0)
    one, none = np.int32(1), np.int32(0)
    # Slightly larger, because rounding can make the mean of equal logits differ from them in the last bit.
    limit = max(offset, margin) * np.float32(1.0001)
    for n in range(len(logits_Khw)):
        logits_hw = logits_Khw[n]
        outer, inner = boxes_K24[n]
        outer[:2] = inner[:2] = len(upsampling.columns.near), len(upsampling.rows.near)
        outer[2:] = inner[2:] = -1
        for i in range(len(logits_hw)):
            y0, y1 = upsampling.row_cells[i], upsampling.row_cells[i + 1]
            if y0 == y1:
                continue
            for s in range(_find_spans(logits_hw, upsampling, i, -limit, limit, buffers)):
                kind, x0, x1 = buffers.spans_w3[s]
                if kind == INSIDE:
                    counts_K3[n] += (y1 - y0) * (x1 - x0)
                    for box_4 in boxes_K24[n]:
                        box_4[0], box_4[1] = min(box_4[0], x0), min(box_4[1], y0)
                        box_4[2], box_4[3] = max(box_4[2], x1 - 1), y1 - 1
                    continue
                _interpolate(logits_hw, upsampling, i, x0, x1, buffers)
                for y in range(y1 - y0):
                    above = below = inside = none
                    for x in range(np.uint64(x0), np.uint64(x1)):
                        value = pixels_EW[y, x]
                        above += one if value > offset else none
                        below += one if value > -offset else none
                        inside += one if value > zero else none
                    counts_K3[n, 0] += above
                    counts_K3[n, 1] += below
                    counts_K3[n, 2] += inside
                    if margin == 0:
                        if inside > 0:
                            _widen(outer, pixels_EW[y], y0 + y, x0, x1, zero)
                        continue
                    within_outer = within_inner = none
                    for x in range(np.uint64(x0), np.uint64(x1)):
                        value = pixels_EW[y, x]
                        within_outer += one if value > -margin else none
                        within_inner += one if value > margin else none
                    if within_outer > 0:
                        _widen(outer, pixels_EW[y], y0 + y, x0, x1, -margin)
                    if within_inner > 0:
                        _widen(inner, pixels_EW[y], y0 + y, x0, x1, margin)
        if margin == 0:
            inner[:] = outer


@njit()
def _changes(logits_hw, upsampling, offset, stride):
    buffers = _buffers(upsampling)
    H, W = len(upsampling.rows.near), len(upsampling.columns.near)
    # With a row of zeros above and below, and padded to whole words of 8 pixels.
    inside = np.zeros((H + 2, -(-W // 8) * 8), np.bool_)
    words = inside.view(np.uint64)
    left, top, right, bottom = W, H, 0, 0
    for i in range(len(logits_hw)):
        y0, y1 = upsampling.row_cells[i], upsampling.row_cells[i + 1]
        if y0 == y1:
            continue
        for s in range(_find_spans(logits_hw, upsampling, i, np.float32(0), np.float32(0), buffers)):
            kind, x0, x1 = buffers.spans_w3[s]
            left, right, top, bottom = min(left, x0), max(right, x1), min(top, y0), y1
            if kind == INSIDE:
                inside[y0 + 1 : y1 + 1, x0:x1] = True
                continue
            _interpolate(logits_hw, upsampling, i, x0, x1, buffers)
            for y in range(y0, y1):
                for x in range(np.uint64(x0), np.uint64(x1)):
                    inside[y + 1, x] = buffers.pixels_EW[y - y0, x] > 0
    count_W = np.zeros(W, np.int32)  # number of changes in each column
    for y in range(top, bottom + 1):
        for x in range(np.uint64(left), np.uint64(right)):
            count_W[x] += inside[y, x] ^ inside[y + 1, x]
    next_W = np.cumsum(count_W) - count_W  # index of the next change of each column
    positions = np.empty(count_W.sum(), np.int64)
    for y in range(top, bottom + 1):
        for word in range(left // 8, (right + 7) // 8):
            if words[y, word] == words[y + 1, word]:
                continue
            for x in range(8 * word, 8 * word + 8):
                if inside[y, x] != inside[y + 1, x]:
                    positions[next_W[x]] = offset + x * stride + y
                    next_W[x] += 1
    return positions
