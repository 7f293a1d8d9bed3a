"""Attention in windows of an encoder's grid, in a Numba kernel that reads the windows where they are.

Shapes: Y X grid in cells, C channels, U heads, D features per head, W side of a window, L = W*W cells of a window.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from maskmill.compiled import njit
from maskmill.model.inference.cpu_kernels import OPTIONS, array, exponentials_over_rows, scratch
from maskmill.model.inference.matrix_tiles import add_product


def attend_in_windows(qkv_YXK: Tensor, heads: int, window: int) -> Tensor:
    """Attention (Y, X, C) in float32, from queries, keys and values (K = 3C).

    Windows may exceed the grid; cells outside are zeros. Runs in the calling thread.
    """
    Y, X, K = qkv_YXK.shape
    seen_YXC = qkv_YXK.new_empty(Y, X, K // 3)
    arrays = array(qkv_YXK.contiguous()), array(seen_YXC)
    D, L = K // 3 // heads, window * window
    buffers = scratch(D, L), scratch(L, D), scratch(L, D), scratch(L, L), scratch(D, L), scratch(L)
    _attend_in_windows(*arrays, heads, window, *buffers)
    return seen_YXC


@njit(**OPTIONS)
def _attend_in_windows(qkv_YXK, seen_YXC, heads, window, query_DL, key_LD, value_LD, weights_LL, seen_DL, total_L):
    Y, X, C = seen_YXC.shape
    D, L = C // heads, window * window
    scale = np.float32(1) / np.sqrt(np.float32(D))
    across = (X + window - 1) // window
    for w in range((Y + window - 1) // window * across):
        top, left = w // across * window, w % across * window
        bottom, right = min(top + window, Y), min(left + window, X)
        for u in range(heads):
            if bottom - top < window or right - left < window:
                query_DL[:], key_LD[:], value_LD[:] = 0, 0, 0
            for y in range(top, bottom):
                for x in range(left, right):
                    cell, qkv_K = (y - top) * window + x - left, qkv_YXK[y, x]
                    for d in range(D):
                        key_LD[cell, d] = qkv_K[C + u * D + d]
                        value_LD[cell, d] = qkv_K[2 * C + u * D + d]
                        query_DL[d, cell] = scale * qkv_K[u * D + d]
            # Keys are rows, queries columns: the softmax over the rows needs no sums within a vector.
            weights_LL[:] = 0
            add_product(key_LD, query_DL, weights_LL)
            exponentials_over_rows(weights_LL, 0, total_L)
            for x in range(np.uint64(L)):
                total_L[x] = np.float32(1) / total_L[x]
            seen_DL[:] = 0
            add_product(value_LD.T, weights_LL, seen_DL)
            for d in range(D):
                seen_L = seen_DL[d]
                for x in range(np.uint64(L)):
                    seen_L[x] *= total_L[x]
            for y in range(top, bottom):
                for x in range(left, right):
                    cell, seen_C = (y - top) * window + x - left, seen_YXC[y, x]
                    for d in range(D):
                        seen_C[u * D + d] = seen_DL[d, cell]
