"""Matrix products inside Numba kernels, at the rate of a good library and without a call to one.

A tile of the result stays in vector registers while its sums are added up. LLVM does not make such tiles from loops,
so this file generates their instructions. Matrices are float32. The last axis of each is contiguous, except that the
first factor of `add_product` may have any strides.

Numba's cache on disk does not notice that a kernel in another file was compiled with an earlier version of this one:
after an edit, delete the folders `__pycache__`.

Shapes: M N rows and columns of the result, K length of its sums.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from maskmill.compiled import njit

_target: Any = cpu_target.target_context
_HAS_AVX512 = "+avx512f" in _target.codegen().magic_tuple()[2]
# A tile of ROWS x VECTORS vectors, VECTORS more and a factor must fit in the registers: 32 with AVX-512, 16 with AVX2.
# What does not fit goes to the stack, and is slow where a vector of the stack lies in two cache lines.
LANES, ROWS, VECTORS = (16, 7, 3) if _HAS_AVX512 else (8, 6, 2)
WIDTH = VECTORS * LANES

_f32, _i32, _i64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_vector = ir.VectorType(_f32, LANES)


class _Matrix:
    """Addresses of the elements of an array argument."""

    def __init__(self, context: Any, builder: ir.IRBuilder, array_type: Any, value: Any) -> None:
        array = context.make_array(array_type)(context, builder, value)
        self._builder, self._start = builder, builder.ptrtoint(array.data, _i64)
        self._row, self._column = cgutils.unpack_tuple(builder, array.strides)
        self.shape = cgutils.unpack_tuple(builder, array.shape)

    def at(self, row: Any, column: Any, kind: Any) -> Any:
        """A pointer to an element, as the first of a vector if `kind` is one."""
        is_scalar = kind == _f32
        along = self._builder.mul(column, self._column) if is_scalar else self._builder.shl(column, _i64(2))
        offset = self._builder.add(self._builder.mul(row, self._row), along)
        return self._builder.inttoptr(self._builder.add(self._start, offset), kind.as_pointer())


def _splat(builder: ir.IRBuilder, value: Any) -> Any:
    undefined = ir.Constant(_vector, ir.Undefined)
    first = builder.insert_element(undefined, value, _i32(0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(_i32, LANES), [0] * LANES))


def _tile(builder: ir.IRBuilder, a: _Matrix, b: _Matrix, c: _Matrix, rows: int, columns: int, by_rows: bool) -> None:
    """Instructions for one tile: c += a @ b, or c += a @ b^T if `by_rows`.

    A column of the tile is a vector of columns of c, or one column of c if `by_rows`. Its sums then have one lane for
    every LANES-th element, and the lanes are added at the end.
    """

    def fma(*operands: Any) -> Any:
        signature = ir.FunctionType(_vector, [_vector] * 3)
        return builder.call(
            cgutils.get_or_insert_function(builder.module, signature, f"llvm.fma.v{LANES}f32"), operands
        )

    def load(matrix: _Matrix, row: Any, column: Any) -> Any:
        return builder.load(matrix.at(row, column, _vector), align=4)

    grid = [(_i64(row), column) for row in range(rows) for column in range(columns)]
    zero = ir.Constant(_vector, [0.0] * LANES)
    start = [zero if by_rows else load(c, row, _i64(column * LANES)) for row, column in grid]
    before, body, after = builder.block, builder.append_basic_block(), builder.append_basic_block()
    step, length = _i64(LANES if by_rows else 1), a.shape[1]
    builder.cbranch(builder.icmp_signed("<", _i64(0), length), body, after)
    builder.position_at_end(body)
    k = builder.phi(_i64)
    sums = [builder.phi(_vector) for _ in grid]
    if by_rows:
        left = [load(a, _i64(row), k) for row in range(rows)]
        right = [load(b, _i64(column), k) for column in range(columns)]
    else:
        left = [_splat(builder, builder.load(a.at(_i64(row), k, _f32))) for row in range(rows)]
        right = [load(b, k, _i64(column * LANES)) for column in range(columns)]
    added = [fma(left[i // columns], right[i % columns], sums[i]) for i in range(len(grid))]
    following = builder.add(k, step)
    builder.cbranch(builder.icmp_signed("<", following, length), body, after)
    k.add_incoming(_i64(0), before)
    k.add_incoming(following, body)
    for i, total in enumerate(sums):
        total.add_incoming(start[i], before)
        total.add_incoming(added[i], body)
    builder.position_at_end(after)
    results = [builder.phi(_vector) for _ in grid]
    for i, result in enumerate(results):
        result.add_incoming(start[i], before)
        result.add_incoming(added[i], body)
    for result, (row, column) in zip(results, grid, strict=True):
        if not by_rows:
            builder.store(result, c.at(row, _i64(column * LANES), _vector), align=4)
            continue
        target = c.at(row, _i64(column), _f32)
        signature = ir.FunctionType(_f32, [_f32, _vector])
        add_lanes = cgutils.get_or_insert_function(builder.module, signature, f"llvm.vector.reduce.fadd.v{LANES}f32")
        builder.store(builder.call(add_lanes, [builder.load(target), result], fastmath=("reassoc",)), target)


def _tiles(by_rows: bool) -> Any:
    """An intrinsic that adds a product to a tile of up to ROWS rows, and VECTORS columns (of vectors) or one."""

    def typed(typing_context: Any, a_MK: Any, b: Any, c_MN: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
            a, b, c = (_Matrix(context, builder, *pair) for pair in zip(signature.args, arguments, strict=True))
            end = builder.append_basic_block()
            # The number of the tile: rows, or rows + 2 * ROWS for a single column.
            is_one = builder.icmp_signed("==", c.shape[1], _i64(1 if by_rows else LANES))
            kind = builder.add(a.shape[0], builder.select(is_one, _i64(2 * ROWS), _i64(0)))
            choice = builder.switch(kind, end)
            for width in (1, VECTORS):
                for rows in range(1, ROWS + 1):
                    block = builder.append_basic_block()
                    choice.add_case(_i64(rows + (2 * ROWS if width == 1 else 0)), block)
                    builder.position_at_end(block)
                    _tile(builder, a, b, c, rows, width, by_rows)
                    builder.branch(end)
            builder.position_at_end(end)
            return context.get_dummy_value()

        return types.void(a_MK, b, c_MN), generate

    return intrinsic(typed)


_add_tile, _add_tile_of_rows = _tiles(by_rows=False), _tiles(by_rows=True)

# `_nrt`: these functions allocate arrays, also if the kernel that calls them counts no references.


@njit(_nrt=True)
def add_product(a_MK, b_KN, c_MN):
    """c += a @ b, in a Numba kernel. Fastest if N is a multiple of WIDTH."""
    N = c_MN.shape[1]
    wide, whole = N - N % WIDTH, N - N % LANES
    for j in range(0, wide, WIDTH):
        _add_columns(a_MK, b_KN[:, j : j + WIDTH], c_MN[:, j : j + WIDTH])
    for j in range(wide, whole, LANES):
        _add_columns(a_MK, b_KN[:, j : j + LANES], c_MN[:, j : j + LANES])
    if whole < N:
        sums_MW = np.zeros((len(a_MK), LANES), np.float32)
        _add_columns(a_MK, _padded(b_KN[:, whole:], LANES), sums_MW)
        for i in range(len(c_MN)):
            for j in range(whole, N):
                c_MN[i, j] += sums_MW[i, j - whole]


@njit()
def _add_columns(a_MK, b_KW, c_MW):
    M = len(a_MK)
    parts = (M + ROWS - 1) // ROWS
    for i in range(parts):
        rows = slice(M * i // parts, M * (i + 1) // parts)
        _add_tile(a_MK[rows], b_KW, c_MW[rows])


@njit(_nrt=True)
def add_product_of_rows(a_MK, b_NK, c_MN):
    """c += a @ b^T, in a Numba kernel. Fast if K is a multiple of LANES."""
    K = a_MK.shape[1]
    if K % LANES > 0:
        padded = K + LANES - K % LANES
        a_MK, b_NK = _padded(a_MK, padded), _padded(b_NK, padded)
    M, N = c_MN.shape
    parts = (M + ROWS - 1) // ROWS
    for i in range(parts):
        rows = slice(M * i // parts, M * (i + 1) // parts)
        whole = N - N % VECTORS
        for j in range(0, whole, VECTORS):
            _add_tile_of_rows(a_MK[rows], b_NK[j : j + VECTORS], c_MN[rows, j : j + VECTORS])
        for j in range(whole, N):
            _add_tile_of_rows(a_MK[rows], b_NK[j : j + 1], c_MN[rows, j : j + 1])


@njit(_nrt=True)
def _padded(x_MN, columns):
    """The matrix with columns of zeros added."""
    padded = np.zeros((len(x_MN), columns), np.float32)
    for i in range(x_MN.shape[0]):
        for j in range(x_MN.shape[1]):
            padded[i, j] = x_MN[i, j]
    return padded
