"""Numba kernels of `model.inference.upscaling`. They go through the cells in blocks that fit in the caches.

The second step, the mask weights and everything between are computed while a block is in the caches. Tensors must be
contiguous, in float32 unless bfloat16 is mentioned. The arithmetic is float32. The kernels run in the calling thread.

Shapes: C D channels after the first and second step, R rows of a factor of the image tokens, L cells, B cells of a
block, K chosen masks, h w mask logits, P Q the four pixels of the first and second step (two rows of two).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor, nn

from maskmill.compiled import njit
from maskmill.model.inference.cpu_kernels import OPTIONS, array, gelu, load, scratch, store
from maskmill.model.inference.matrix_tiles import add_product

BLOCK = 512  # cells: 0.4 MiB of features with `vit_b`


class FirstStep(NamedTuple):
    """The first step before its norm: scale * (weight @ x + shared) + constant + skip, for each pixel P."""

    weight_OR: Tensor  # O = P * C
    x_RL: Tensor
    scale_L: Tensor
    shared_PCL: Tensor
    constant_C: Tensor
    skip_PCL: Tensor | None


class SecondStep(NamedTuple):
    """The second step before its GELU: weight @ x + constant + skip, for each pixel Q of each pixel P."""

    weight_OC: Tensor  # O = Q * D
    constant_D: Tensor
    skip_PQDL: Tensor | None


def upscale(
    first: FirstStep,
    norm: nn.LayerNorm,
    second: SecondStep,
    mask_weights_KD: Tensor,
    grid_width: int,
    logits_Khw: Tensor,
    features_PQDL: Tensor | None,
) -> None:
    """Computes both steps of a prompt, and writes products with the mask weights as logits.

    `features_PQDL`, if given, receives the result of the second GELU.
    """
    skip_PCL = first.shared_PCL[:0] if first.skip_PCL is None else first.skip_PCL
    none_PQDL = mask_weights_KD.new_empty(0, 0, 0, 0)
    skip_PQDL = none_PQDL if second.skip_PQDL is None else second.skip_PQDL
    features_PQDL = none_PQDL if features_PQDL is None else features_PQDL
    size = _whole_rows(grid_width)
    _upscale(
        *map(array, (*first[:5], skip_PCL, norm.weight, norm.bias)),
        np.float32(norm.eps),
        *map(array, (*second[:2], skip_PQDL, mask_weights_KD)),
        grid_width,
        *map(array, (logits_Khw, features_PQDL)),
        *(scratch(rows, size) for rows in (len(norm.weight), len(second.weight_OC), len(mask_weights_KD), 2)),
    )


def norm_and_gelu(x_PCL: Tensor, constant_C: Tensor, skip_PCL: Tensor | None, norm: nn.LayerNorm) -> None:
    """Adds a constant per channel and skip features, then layer norm and GELU, in place. x and skip may be bfloat16."""
    skip_PCL = x_PCL[:0] if skip_PCL is None else skip_PCL
    arrays = map(array, (x_PCL, constant_C, skip_PCL, norm.weight, norm.bias))
    _norm_and_gelu(np.float32(norm.eps), *arrays, scratch(len(constant_C), BLOCK), scratch(2, BLOCK))


def gelu_and_logits(
    x_QDL: Tensor,
    constant_D: Tensor,
    skip_QDL: Tensor | None,
    mask_weights_KD: Tensor,
    pixel: int,
    grid_width: int,
    logits_Khw: Tensor,
) -> None:
    """The end of the second step for one pixel P. x becomes the result of the GELU. x and skip may be bfloat16."""
    skip_QDL = x_QDL[:0] if skip_QDL is None else skip_QDL
    arrays = map(array, (x_QDL, constant_D, skip_QDL, mask_weights_KD))
    size = _whole_rows(grid_width)
    buffers = scratch(len(mask_weights_KD), size), scratch(size)
    _gelu_and_logits(*arrays, pixel, grid_width, array(logits_Khw), *buffers)


def _whole_rows(grid_width: int) -> int:
    """The number of cells of a block that consists of whole rows of the grid."""
    return max(1, BLOCK // grid_width) * grid_width


@njit(**OPTIONS)
def _upscale(
    weight_OR, x_RL, scale_L, shared_PCL, constant_C, skip_PCL, norm_C, bias_C, eps,
    weight_OC, constant_D, skip_PQDL, mask_weights_KD, grid_width, logits_Khw, features_PQDL,
    half_CB, full_OB, sums_KB, moments_2B,
):  # fmt: skip
    P, C, L = shared_PCL.shape
    D = len(constant_D)
    size = half_CB.shape[1]
    for start in range(0, L, size):
        block = slice(start, min(start + size, L))
        B = block.stop - start
        scale_B = scale_L[block]
        for p in range(P):
            half_CB[:] = 0
            if len(x_RL) > 0:
                add_product(weight_OR[p * C : p * C + C], x_RL[:, block], half_CB[:, :B])
            for c in range(C):
                half_B, shared_B, constant = half_CB[c, :B], shared_PCL[p, c, block], constant_C[c]
                for x in range(np.uint64(B)):
                    half_B[x] = constant + scale_B[x] * (half_B[x] + shared_B[x])
                if len(skip_PCL) > 0:
                    _add_row(skip_PCL[p, c, block], half_B)
            _norm_and_gelu_of_block(half_CB, B, norm_C, bias_C, eps, moments_2B)
            full_OB[:] = 0
            add_product(weight_OC, half_CB[:, :B], full_OB[:, :B])
            for q in range(4):
                sums_KB[:] = 0
                for d in range(D):
                    full_B, constant = full_OB[q * D + d, :B], constant_D[d]
                    if len(skip_PQDL) > 0:
                        _add_row(skip_PQDL[p, q, d, block], full_B)
                    for x in range(np.uint64(B)):
                        full_B[x] = gelu(full_B[x] + constant)
                    if len(features_PQDL) > 0:
                        feature_B = features_PQDL[p, q, d, block]
                        for x in range(np.uint64(B)):
                            feature_B[x] = full_B[x]
                    _add_to_masks(full_B, mask_weights_KD, d, sums_KB)
                _write_logits(sums_KB, start, B, p, q, grid_width, logits_Khw)


@njit(**OPTIONS)
def _norm_and_gelu_of_block(x_CB, B, norm_C, bias_C, eps, moments_2B):
    mean_B, scale_B = moments_2B[0, :B], moments_2B[1, :B]
    one, share = np.float32(1), np.float32(1) / np.float32(len(x_CB))
    mean_B[:] = 0
    scale_B[:] = 0
    for c in range(len(x_CB)):
        x_B = x_CB[c, :B]
        for x in range(np.uint64(B)):
            mean_B[x] += share * x_B[x]
    for c in range(len(x_CB)):
        x_B = x_CB[c, :B]
        for x in range(np.uint64(B)):
            difference = x_B[x] - mean_B[x]
            scale_B[x] += share * (difference * difference)
    for x in range(np.uint64(B)):
        scale_B[x] = one / np.sqrt(scale_B[x] + eps)
    for c in range(len(x_CB)):
        x_B, weight, bias = x_CB[c, :B], norm_C[c], bias_C[c]
        for x in range(np.uint64(B)):
            x_B[x] = gelu((x_B[x] - mean_B[x]) * scale_B[x] * weight + bias)


@njit(**OPTIONS)
def _add_row(x_B, sum_B):
    """Adds float32 or bfloat16 to float32."""
    for x in range(np.uint64(len(x_B))):
        sum_B[x] += load(x_B[x])


@njit(**OPTIONS)
def _add_to_masks(x_B, mask_weights_KD, d, sums_KB):
    for k in range(len(mask_weights_KD)):
        sum_B, weight = sums_KB[k, : len(x_B)], mask_weights_KD[k, d]
        for x in range(np.uint64(len(x_B))):
            sum_B[x] += weight * x_B[x]


@njit(**OPTIONS)
def _write_logits(sums_KB, start, B, p, q, grid_width, logits_Khw):
    row, column = 2 * (p // 2) + q // 2, 2 * (p % 2) + q % 2
    for k in range(len(sums_KB)):
        for first in range(0, B, grid_width):
            sum_X = sums_KB[k, first : first + grid_width]
            logits_w = logits_Khw[k, 4 * ((start + first) // grid_width) + row]
            for x in range(np.uint64(grid_width)):
                logits_w[np.uint64(4) * x + np.uint64(column)] = sum_X[x]


@njit(**OPTIONS)
def _norm_and_gelu(eps, x_PCL, constant_C, skip_PCL, norm_C, bias_C, block_CB, moments_2B):
    P, C, L = x_PCL.shape
    for p in range(P):
        for start in range(0, L, BLOCK):
            block = slice(start, min(start + BLOCK, L))
            B = block.stop - start
            for c in range(C):
                block_B, x_B, constant = block_CB[c, :B], x_PCL[p, c, block], constant_C[c]
                block_B[:] = constant
                _add_row(x_B, block_B)
                if len(skip_PCL) > 0:
                    _add_row(skip_PCL[p, c, block], block_B)
            _norm_and_gelu_of_block(block_CB, B, norm_C, bias_C, eps, moments_2B)
            for c in range(C):
                block_B, x_B = block_CB[c, :B], x_PCL[p, c, block]
                for x in range(np.uint64(B)):
                    store(x_B, x, block_B[x])


@njit(**OPTIONS)
def _gelu_and_logits(x_QDL, constant_D, skip_QDL, mask_weights_KD, p, grid_width, logits_Khw, sums_KB, activated_B):
    Q, D, L = x_QDL.shape
    size = len(activated_B)
    for start in range(0, L, size):
        block = slice(start, min(start + size, L))
        B = block.stop - start
        for q in range(Q):
            sums_KB[:] = 0
            for d in range(D):
                x_B, constant, active_B = x_QDL[q, d, block], constant_D[d], activated_B[:B]
                active_B[:] = constant
                _add_row(x_B, active_B)
                if len(skip_QDL) > 0:
                    _add_row(skip_QDL[q, d, block], active_B)
                for x in range(np.uint64(B)):
                    active_B[x] = gelu(active_B[x])
                    store(x_B, x, active_B[x])
                _add_to_masks(active_B, mask_weights_KD, d, sums_KB)
            _write_logits(sums_KB, start, B, p, q, grid_width, logits_Khw)
