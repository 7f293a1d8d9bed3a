"""What all Numba kernels of the decoder and of attention need, and `update_and_norm`.

Tensors must be contiguous, in float32 or bfloat16. The arithmetic is float32. The kernels run in the calling thread.

Shapes: B images (1 if all prompts share one, else N), N prompts, L image tokens, C channels, F attention weights of an
image token.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload
from numpy.typing import NDArray
from torch import Tensor

from maskmill.compiled import njit
from maskmill.model.layers import fast_linear

# These options let LLVM vectorise the loops: sums in any order, and IEEE division (no ZeroDivisionError). Kernels get
# their buffers from `scratch` and cannot allocate arrays: otherwise Numba counts references to views, atomically.
OPTIONS: Any = {"fastmath": {"reassoc", "contract", "nsz"}, "error_model": "numpy", "_nrt": False}


def update_and_norm(
    weights_NFL: Tensor,
    values_NFC: Tensor,
    image_BLC: Tensor,
    positions_1LC: Tensor,
    weight_C: Tensor,
    bias_C: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """See `fused_ops.update_and_norm`."""
    N, L = len(weights_NFL), weights_NFL.shape[2]
    image_NLC = image_BLC.new_empty(N, L, values_NFC.shape[2])
    placed_NLC = torch.empty_like(image_NLC)
    shared = [*map(array, (positions_1LC[0], weight_C, bias_C)), scratch(len(weight_C))]
    for n in range(N):
        # Prompt by prompt: the product is still in the cache when the kernel reads it.
        update_LC = fast_linear(weights_NFL[n].mT, values_NFC[n].mT)
        own = [array(x) for x in (update_LC, image_BLC[n % len(image_BLC)], image_NLC[n], placed_NLC[n])]
        _add_and_norm(np.float32(eps), *own, *shared)
    return image_NLC, placed_NLC


def array(tensor: Tensor) -> NDArray[Any]:
    """A NumPy view of the tensor. bfloat16 becomes uint16, because NumPy has no bfloat16."""
    assert tensor.is_contiguous()  # otherwise kernels would be slow or, with `matrix_tiles`, use other memory
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).detach().numpy()


def scratch(*shape: int) -> NDArray[np.float32]:
    """A buffer for a kernel, without values. It starts at a cache line, unlike NumPy's own arrays."""
    return torch.empty(shape, dtype=torch.float32).numpy()


def _generate_bitcast(typing_context: Any, value: Any) -> Any:
    """Reinterprets the bits of a float32 as uint32, or of a uint32 as float32."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(signature.return_type))

    return (types.uint32 if value == types.float32 else types.float32)(value), generate


_bitcast: Any = intrinsic(_generate_bitcast)


def load(value) -> Any:
    """Converts an array element (float32, or the bits of a bfloat16) to float32."""


def store(array, index, value) -> Any:
    """Stores a float32 in an array, rounded to the type of the array."""


@overload(load, inline="always")
def _overload_load(value):
    if value == types.float32:
        return lambda value: value
    return lambda value: _bitcast(np.uint32(np.uint32(value) << np.uint32(16)))


@overload(store, inline="always")
def _overload_store(array, index, value):
    if array.dtype == types.float32:

        def store(array, index, value):
            array[index] = value
    else:

        def store(array, index, value):
            bits = _bitcast(value)
            # Round to nearest, ties to even.
            odd = np.uint32((bits >> np.uint32(16)) & np.uint32(1))
            array[index] = np.uint16(np.uint32(bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))

    return store


def _float32(*values: float) -> tuple[np.float32, ...]:
    return tuple(np.float32(value) for value in values)


# The integral of the normal density from 0 to x is x P(x^2) / Q(x^2) with an error below 1e-8 for |x| <= 5.5. The
# coefficients were fitted by least squares.
_P = _float32(0.39894226, 0.033620734, 0.0046622665, 0.00016636985, 6.327097e-06, 2.2880347e-08)
_Q = _float32(1.0, 0.25094083, 0.028511103, 0.0018705947, 7.281694e-05, 1.1994756e-06)
_LIMIT, _HALF, _ONE = _float32(5.5, 0.5, 1.0)


@njit(**OPTIONS)
def gelu(x):
    z = -_LIMIT if x < -_LIMIT else x
    z = _LIMIT if z > _LIMIT else z
    t = z * z
    p = ((((_P[5] * t + _P[4]) * t + _P[3]) * t + _P[2]) * t + _P[1]) * t + _P[0]
    q = ((((_Q[5] * t + _Q[4]) * t + _Q[3]) * t + _Q[2]) * t + _Q[1]) * t + _Q[0]
    return x * (_HALF + z * p / q)


# exp(x) = 2^n exp(r), with n an integer and |r| <= ln(2) / 2. ln(2) has two parts, so that n * ln(2) is exact enough.
_LOG2_E, _LN_2, _LN_2_REST, _LEAST = _float32(1.44269504, 0.693359375, -2.12194440e-4, -87.0)
_TAYLOR = _float32(1, 1, 1 / 2, 1 / 6, 1 / 24, 1 / 120, 1 / 720)


@njit(**OPTIONS)
def exp(x):
    """The exponential of x <= 0, in a Numba kernel that LLVM vectorises; e^-87 below -87. Relative error below 1e-6."""
    x = _LEAST if x < _LEAST else x
    n = np.floor(x * _LOG2_E + _HALF)
    r = x - n * _LN_2 - n * _LN_2_REST
    series = _TAYLOR[6]
    for i in (5, 4, 3, 2, 1, 0):
        series = series * r + _TAYLOR[i]
    return series * _bitcast(np.uint32(np.uint32(np.int32(n) + np.int32(127)) << np.uint32(23)))


# Loops count in uint64, over rows with one axis: LLVM does not vectorise loops with an index that might be negative.
# Arrays are copied in loops, too: an assignment of an array takes seconds to compile, because of the text of its error.


@njit(**OPTIONS)
def exponentials_over_rows(x_TL, start, total_B):
    """A softmax over the rows without its division, in place, for columns from `start` on.

    `total_B` becomes the sums of the exponentials.
    """
    T, B = len(x_TL), len(total_B)
    block = slice(start, start + B)
    total_B[:] = -np.inf
    for t in range(T):
        x_B = x_TL[t, block]
        for x in range(np.uint64(B)):
            total_B[x] = x_B[x] if x_B[x] > total_B[x] else total_B[x]
    for t in range(T):
        x_B = x_TL[t, block]
        for x in range(np.uint64(B)):
            x_B[x] = exp(x_B[x] - total_B[x])
    total_B[:] = 0
    for t in range(T):
        x_B = x_TL[t, block]
        for x in range(np.uint64(B)):
            total_B[x] += x_B[x]


@njit(**OPTIONS)
def _normalise(row_C, eps):
    """Normalises a row to mean 0 and variance 1, in place."""
    channels = np.uint64(len(row_C))
    total = squares = np.float32(0)
    for c in range(channels):
        total += row_C[c]
    mean = total / np.float32(channels)
    for c in range(channels):
        row_C[c] -= mean
        squares += row_C[c] * row_C[c]
    scale = _ONE / np.sqrt(squares / np.float32(channels) + eps)
    for c in range(channels):
        row_C[c] *= scale


@njit(**OPTIONS)
def _add_and_norm(eps, update_LC, image_LC, normed_LC, placed_LC, positions_LC, weight_C, bias_C, row_C):
    L, C = update_LC.shape
    for i in range(L):
        for c in range(np.uint64(C)):
            row_C[c] = load(update_LC[i, c]) + load(image_LC[i, c])
        _normalise(row_C, eps)
        for c in range(np.uint64(C)):
            value = row_C[c] * weight_C[c] + bias_C[c]
            store(normed_LC[i], c, value)
            store(placed_LC[i], c, value + load(positions_LC[i, c]))
