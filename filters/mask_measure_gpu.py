"""`filters.mask_measure` on a GPU: Triton kernels that interpolate pixels without storing full-resolution logits.

Each Triton program processes a strip of columns of one mask. It iterates over the rows that can be above the threshold
and keeps the two current rows of the network input in registers. The arithmetic is that of `filters.mask_measure_cpu`,
in the same order, so the pixels are bit-identical.

Shapes: K masks, h w low-resolution logits, W width of the crop in pixels, E columns of a strip.
"""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from maskmill.compiled import choose_triton_cache
from maskmill.filters.boxes import masks_to_boxes
from maskmill.filters.upsampling import Taps, Upsampling

choose_triton_cache()

_STRIP = 128  # columns
_LAUNCH = {"STRIP": _STRIP, "num_warps": 1, "enable_fp_fusion": False}
_MAX_PLANS = 64  # the cache size of `plan_upsampling`
_NO_PIXEL = tl.constexpr(2**31 - 1)  # initial minimum of coordinates: larger than every coordinate


def measure(logits_Khw: Tensor, upsampling: Upsampling, offset: float, margin: float) -> tuple[Tensor, Tensor]:
    """See `filters.mask_measure_cpu.measure`.

    Synchronises only when an upsampling plan is copied to the device for the first time.
    """
    plan = _on_device(upsampling, logits_Khw.device)
    counts_K3 = logits_Khw.new_zeros((len(logits_Khw), 3), dtype=torch.int64)
    boxes_K24 = logits_Khw.new_full((len(logits_Khw), 2, 4), _NO_PIXEL.value, dtype=torch.int64)
    boxes_K24[:, :, 2:] = -1
    with torch.cuda.device_of(logits_Khw):
        # Slightly lower, because rounding can make the mean of equal logits higher in the last bit.
        strips = _strips(logits_Khw, plan, -max(offset, margin) * 1.0001)
        _measure[plan.grid(logits_Khw)](*strips, offset, margin, counts_K3, boxes_K24, **_LAUNCH)
    return counts_K3, boxes_K24


def find_changes(logits_Khw: Tensor, upsampling: Upsampling, offset: int, stride: int) -> list[NDArray[np.int64]]:
    """See `filters.mask_measure_cpu.find_changes`. Synchronises twice: for the counts, then for the positions."""
    if len(logits_Khw) == 0:
        return []
    plan = _on_device(upsampling, logits_Khw.device)
    changes_KW = logits_Khw.new_zeros((len(logits_Khw), plan.width), dtype=torch.int32)
    with torch.cuda.device_of(logits_Khw):
        arguments = (*_strips(logits_Khw, plan, 0), plan.width, stride, changes_KW)
        launch = _changes[plan.grid(logits_Khw)]
        launch(*arguments, None, None, **_LAUNCH)
        ends_KW = changes_KW.view(-1).cumsum(0).view_as(changes_KW)
        ends_K = ends_KW[:, -1].cpu().numpy()
        positions = ends_KW.new_empty(ends_K[-1])
        launch(*arguments, ends_KW, positions, **_LAUNCH)
    return np.split((positions + offset).cpu().numpy(), ends_K[:-1])


class _Axis(NamedTuple):
    """One axis of a bilinear resize, on a device."""

    positions: Tensor  # float32, per pixel: near tap + weight of the far tap
    last: int  # last tap


class _Plan(NamedTuple):
    """An `Upsampling` on a device."""

    to_input: _Axis
    rows: _Axis
    columns: _Axis
    row_cells: Tensor  # (h + 1,) int32
    column_cells: Tensor  # (w + 1,) int32

    @property
    def width(self) -> int:
        return len(self.columns.positions)

    def grid(self, logits_Khw: Tensor) -> tuple[int, int]:
        """The launch grid: one program per mask and strip."""
        return len(logits_Khw), -(-self.width // _STRIP)


_plans: dict[tuple[int, torch.device], tuple[Upsampling, _Plan]] = {}
_plans_lock = threading.Lock()


def _on_device(upsampling: Upsampling, device: torch.device) -> _Plan:
    """The plan on the device. Cached by identity: `plan_upsampling` returns the same object for the same sizes."""
    key = id(upsampling), device
    with _plans_lock:
        if key not in _plans:
            if len(_plans) == _MAX_PLANS:
                del _plans[next(iter(_plans))]
            plan = _Plan(
                _axis_on_device(upsampling.to_input, device),
                _axis_on_device(upsampling.rows, device),
                _axis_on_device(upsampling.columns, device),
                torch.from_numpy(upsampling.row_cells).to(device, torch.int32),
                torch.from_numpy(upsampling.column_cells).to(device, torch.int32),
            )
            # The entry keeps the upsampling alive, so no other object gets its id.
            _plans[key] = upsampling, plan
        return _plans[key][1]


def _axis_on_device(taps: Taps, device: torch.device) -> _Axis:
    positions = (taps.near + taps.far_weight).astype(np.float32)
    return _Axis(torch.from_numpy(positions).to(device), int(taps.far[-1]))


def _strips(logits_Khw: Tensor, plan: _Plan, threshold: float) -> tuple[Tensor | int, ...]:
    """The first arguments of the kernels. `windows_K4` (y0 y1 x0 x1) contains all pixels above the threshold."""
    x0_K, y0_K, x1_K, y1_K = masks_to_boxes(logits_Khw > threshold).unbind(dim=1)
    rows_K2 = plan.row_cells[torch.stack([(y0_K - 2).clamp(min=0), y1_K + 1], dim=1)]
    columns_K2 = plan.column_cells[torch.stack([(x0_K - 2).clamp(min=0), x1_K + 1], dim=1)]
    windows_K4 = torch.cat([rows_K2, columns_K2], dim=1)
    return logits_Khw.contiguous(), windows_K4, *plan.to_input, *plan.rows, *plan.columns


_function: Any = triton.jit
# Sizes are not specialised: Triton would compile the kernels again for images of other sizes.
_kernel: Any = triton.jit(do_not_specialize=["last_logit", "last_row", "last_column", "width", "stride"])


@_function
def _taps(positions, pixel, last):
    """The near and far tap of pixels and their weights, see `filters.upsampling.Taps`."""
    position = tl.load(positions + pixel)
    near = position.to(tl.int32)
    far_weight = position - near
    return near, tl.minimum(near + 1, last), 1 - far_weight, far_weight


@_function
def _mix(near, far, taps):
    return tl.fma(near, taps[2], far * taps[3])


@_function
def _input(near_row, far_row, row, column):
    """Interpolates pixels (E,) of the network input from two rows of logits. `row` and `column` are taps."""
    near = _mix(tl.load(near_row + column[0]), tl.load(near_row + column[1]), column)
    far = _mix(tl.load(far_row + column[0]), tl.load(far_row + column[1]), column)
    return _mix(near, far, row)


@_function
def _input_row(r, strip):
    """Row r of the network input, interpolated at the columns (E,) of the strip."""
    logits, to_input, last_logit, column, left, right = strip
    row = _taps(to_input, r, last_logit)
    near_row, far_row = logits + row[0] * (last_logit + 1), logits + row[1] * (last_logit + 1)
    return _mix(_input(near_row, far_row, row, left), _input(near_row, far_row, row, right), column)


@_function
def _pixels(y, r, near, far, rows, last_row, strip):
    """Pixels (E,) of row y, then (r, near, far) for the next call: `near` is input row r, `far` the next input row."""
    row = _taps(rows, y, last_row)
    if row[0] != r:
        near = far if row[0] == r + 1 else _input_row(row[0], strip)
        far = _input_row(row[1], strip)
    return _mix(near, far, row), row[0], near, far


@_function
def _strip(logits, windows, to_input, last_logit, columns, last_column, STRIP: tl.constexpr):
    """Returns the row range (first, end), columns x, whether each is in the window, and arguments of `_input_row`."""
    n = tl.program_id(0).to(tl.int64)
    y0, y1 = tl.load(windows + 4 * n), tl.load(windows + 4 * n + 1)
    x0, x1 = tl.load(windows + 4 * n + 2), tl.load(windows + 4 * n + 3)
    x0 += tl.program_id(1) * STRIP
    x = x0 + tl.arange(0, STRIP)
    near, far, near_weight, far_weight = _taps(columns, tl.minimum(x, x1 - 1), last_column)
    # Columns outside the window get NaN, which is above no threshold.
    column = near, far, tl.where(x < x1, near_weight, float("nan")), far_weight
    left, right = _taps(to_input, near, last_logit), _taps(to_input, far, last_logit)
    strip = logits + n * (last_logit + 1) * (last_logit + 1), to_input, last_logit, column, left, right
    return y0, tl.where(x0 < x1, y1, y0), x, x < x1, strip


@_function
def _widen(top, bottom, y, inside):
    """Updates the first and last row with a pixel of each column, for row y."""
    return tl.minimum(top, tl.where(inside, y, _NO_PIXEL)), tl.where(inside, y, bottom)


@_function
def _store_box(box, x, top, bottom):
    """Extends a box by the columns x that have pixels."""
    tl.atomic_min(box, tl.min(tl.where(bottom >= 0, x, _NO_PIXEL)))
    tl.atomic_min(box + 1, tl.min(top))
    tl.atomic_max(box + 2, tl.max(tl.where(bottom >= 0, x, -1)))
    tl.atomic_max(box + 3, tl.max(bottom))


@_kernel
def _measure(
    logits, windows, to_input, last_logit, rows, last_row, columns, last_column,
    offset, margin, counts, boxes, STRIP: tl.constexpr,
):  # fmt: skip
    y0, y1, x, _, strip = _strip(logits, windows, to_input, last_logit, columns, last_column, STRIP)
    if y0 >= y1:
        return
    above = tl.zeros([STRIP], tl.int32)
    below, area = above, above
    outer_top, outer_bottom = above + _NO_PIXEL, above - 1
    inner_top, inner_bottom = outer_top, outer_bottom
    r, near, far = -2, above.to(tl.float32), above.to(tl.float32)
    for y in range(y0, y1):
        pixels, r, near, far = _pixels(y, r, near, far, rows, last_row, strip)
        above += pixels > offset
        below += pixels > -offset
        area += pixels > 0
        outer_top, outer_bottom = _widen(outer_top, outer_bottom, y, pixels > -margin)
        inner_top, inner_bottom = _widen(inner_top, inner_bottom, y, pixels > margin)
    n = tl.program_id(0).to(tl.int64)
    tl.atomic_add(counts + 3 * n, tl.sum(above))
    tl.atomic_add(counts + 3 * n + 1, tl.sum(below))
    tl.atomic_add(counts + 3 * n + 2, tl.sum(area))
    _store_box(boxes + 8 * n, x, outer_top, outer_bottom)
    _store_box(boxes + 8 * n + 4, x, inner_top, inner_bottom)


@_kernel
def _changes(
    logits, windows, to_input, last_logit, rows, last_row, columns, last_column,
    width, stride, changes, ends, positions, STRIP: tl.constexpr,
):  # fmt: skip
    """Counts the changes of each column, or stores their positions if `positions` is given."""
    y0, y1, x, within, strip = _strip(logits, windows, to_input, last_logit, columns, last_column, STRIP)
    if y0 >= y1:
        return
    column = tl.program_id(0).to(tl.int64) * width + x
    place = tl.zeros([STRIP], tl.int64)
    if positions is not None:
        place += tl.load(ends + column, within, 0) - tl.load(changes + column, within, 0)
    start = x.to(tl.int64) * stride
    before = x < 0
    r, near, far = -2, tl.zeros([STRIP], tl.float32), tl.zeros([STRIP], tl.float32)
    for y in range(y0, y1 + 1):
        # One more row than the window, which counts as outside the mask.
        pixels, r, near, far = _pixels(tl.minimum(y, y1 - 1), r, near, far, rows, last_row, strip)
        inside = (pixels > 0) & (y < y1)
        changed = inside != before
        if positions is not None:
            tl.store(positions + place, start + y, changed)
        place += changed
        before = inside
    if positions is None:
        tl.store(changes + column, place.to(tl.int32), within)
