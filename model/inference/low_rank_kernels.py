"""Numba kernels of `model.inference.low_rank`: attention between prompt tokens and image tokens in factored form.

The kernels go through the image tokens in blocks. What all prompts share in a block stays in the second-level cache,
while one prompt after the other uses it. Arrays are float32 and contiguous. The kernels run in the calling thread.

Shapes: N prompts, T prompt tokens, L image tokens, U heads, D features per head, F = U*T tokens of a prompt for each
head (head by head), R rows of the basis, G H V as in `low_rank.py`, B image tokens of a block.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

from maskmill.compiled import njit
from maskmill.model.inference.cpu_kernels import OPTIONS, array, exp, exponentials_over_rows, scratch
from maskmill.model.inference.matrix_tiles import ROWS, add_product, add_product_of_rows

# Image tokens that are processed together: with 56 tokens of 114 rows, 0.4 MiB.
BLOCK = 512
LANES = 16  # of a maximum


class Scores(NamedTuple):
    """What attention scores are products of: a prompt's projected tokens, with projected image tokens.

    `shared_UDL` and `by_row_NFR` (the tokens projected onto the basis) are empty before the first update.
    """

    token_NFD: Tensor
    shared_UDL: Tensor
    placed_UDL: Tensor
    by_row_NFR: Tensor


def attend(scores: Scores, coefficients_NRL: Tensor, scale_NL: Tensor, values_UDL: Tensor) -> tuple[Tensor, Tensor]:
    """Attention from prompt tokens to image tokens: weighted means of values (N, F, D), and of coefficients (N, F, R).

    `coefficients_NRL` may have more rows than R.
    """
    seen_NFD, seen_NFR = (x.new_empty(x.shape) for x in (scores.token_NFD, scores.by_row_NFR))
    N, F, _ = scores.token_NFD.shape
    buffers = scratch(F, min(BLOCK, scale_NL.shape[1])), scratch(N, F), scratch(N, F), scratch(LANES)
    _attend(*map(array, (*scores, coefficients_NRL, scale_NL, values_UDL, seen_NFD, seen_NFR)), *buffers)
    return seen_NFD, seen_NFR


def update(
    scores: Scores,
    gram_NRR: Tensor,
    value_NGV: Tensor,
    overlaps_GVL: Tensor,
    bias_overlaps_HL: Tensor,
    length_L: Tensor,
    channels: int,
    epsilon: float,
    coefficients_NRL: Tensor,
    scale_NL: Tensor,
) -> None:
    """Attention from image tokens to prompt tokens, residual sum and layer norm: new coefficients and scale, in place.

    The rows of `coefficients_NRL` are the value vectors of each block, then one for the bias of its norm. `epsilon` is
    that of the norm.
    """
    rows, size = scores.by_row_NFR.shape[2] + scores.token_NFD.shape[1], min(BLOCK, len(length_L))
    _update(
        *map(array, (*scores, gram_NRR, value_NGV, overlaps_GVL, bias_overlaps_HL, length_L)),
        channels,
        np.float32(epsilon),
        *map(array, (coefficients_NRL, scale_NL)),
        scratch(rows, size),
        scratch(size),
    )


@njit(**OPTIONS)
def _attend(
    token_NFD, shared_UDL, placed_UDL, by_row_NFR, coefficients_NRL, scale_NL, values_UDL, seen_NFD, seen_NFR,
    weights_FB, highest_NF, total_NF, lanes,
):  # fmt: skip
    N, F, _ = token_NFD.shape
    U, L = len(placed_UDL), scale_NL.shape[1]
    T, R = F // U, by_row_NFR.shape[2]
    highest_NF[:], total_NF[:], seen_NFD[:], seen_NFR[:] = -np.inf, 0, 0, 0
    for start in range(0, L, BLOCK):
        block = slice(start, min(start + BLOCK, L))
        B = block.stop - start
        for n in range(N):
            coefficients_RB, scale_B = coefficients_NRL[n, :R, block], scale_NL[n, block]
            _scores(
                token_NFD[n], shared_UDL, placed_UDL, by_row_NFR[n], coefficients_RB, scale_B, start, weights_FB, 0, 0
            )
            # A softmax over all blocks: what was added before is divided by the growth of the largest exponential.
            for f in range(F):
                weights_B = weights_FB[f, :B]
                highest = max(highest_NF[n, f], _highest(weights_B, lanes))
                shrink = exp(highest_NF[n, f] - highest)
                highest_NF[n, f] = highest
                total = np.float32(0)
                for x in range(np.uint64(B)):
                    weight = exp(weights_B[x] - highest)
                    total += weight
                    weights_B[x] = weight * scale_B[x]
                total_NF[n, f] = total_NF[n, f] * shrink + total
                if start > 0:
                    _multiply(seen_NFD[n, f], shrink)
                    _multiply(seen_NFR[n, f], shrink)
            if R > 0:
                add_product_of_rows(weights_FB[:, :B], coefficients_RB, seen_NFR[n])
            for u in range(U):
                rows = slice(u * T, u * T + T)
                add_product_of_rows(weights_FB[rows, :B], values_UDL[u, :, block], seen_NFD[n, rows])
    for n in range(N):
        for f in range(F):
            _multiply(seen_NFD[n, f], np.float32(1) / total_NF[n, f])
            _multiply(seen_NFR[n, f], np.float32(1) / total_NF[n, f])


@njit(**OPTIONS)
def _update(
    token_NFD, shared_UDL, placed_UDL, by_row_NFR, gram_NRR, value_NGV, overlaps_GVL, bias_overlaps_HL, length_L,
    channels, epsilon, coefficients_NRL, scale_NL, products_RB, squares_B,
):  # fmt: skip
    N, F, _ = token_NFD.shape
    U, L = len(placed_UDL), scale_NL.shape[1]
    T, R = F // U, by_row_NFR.shape[2]
    last = R + F
    zero, one = np.float32(0), np.float32(1)
    share = one / np.float32(channels)
    for start in range(0, L, BLOCK):
        block = slice(start, min(start + BLOCK, L))
        B = block.stop - start
        for n in range(N):
            coefficients_RL, scale_B = coefficients_NRL[n], scale_NL[n, block]
            projected = token_NFD[n], shared_UDL, placed_UDL, by_row_NFR[n], coefficients_RL[:R, block]
            _scores(*projected, scale_B, start, coefficients_RL, R, start)
            for u in range(U):
                _softmax_over_rows(coefficients_RL[R + u * T : R + u * T + T], start, scale_B, squares_B[:B])
            # The squared length of the centred image tokens, without scale.
            products_RB[:] = 0
            for r in range(0, last, ROWS):
                end = min(r + ROWS, last)
                add_product(gram_NRR[n, r:end, :end], coefficients_RL[:end, block], products_RB[r:end, :B])
            row = 0
            for g in range(len(overlaps_GVL)):
                rows = slice(row, row + T)
                add_product(value_NGV[n, g * T : g * T + T], overlaps_GVL[g, :, block], products_RB[rows, :B])
                row += T
                if row < last and (g + 1) % U == 0:
                    product_B, overlap_B = products_RB[row, :B], bias_overlaps_HL[g // U, block]
                    for x in range(np.uint64(B)):
                        product_B[x] += overlap_B[x]
                    row += 1
            length_B = length_L[block]
            for x in range(np.uint64(B)):
                squares_B[x] = length_B[x]
            for r in range(last):
                product_B, coefficient_B = products_RB[r, :B], coefficients_RL[r, block]
                for x in range(np.uint64(B)):
                    squares_B[x] += coefficient_B[x] * product_B[x]
            bias_B = coefficients_RL[last, block]
            for x in range(np.uint64(B)):
                square = max(squares_B[x], zero) * scale_B[x] * scale_B[x]
                scale_B[x] /= np.sqrt(square * share + epsilon)
                bias_B[x] = one / scale_B[x]


@njit(**OPTIONS)
def _scores(token_FD, shared_UDL, placed_UDL, by_row_FR, coefficients_RB, scale_B, start, scores, row, column):
    """Products of projected tokens with B projected image tokens from `start` on, written into `scores`."""
    F, U, B = len(token_FD), len(placed_UDL), len(scale_B)
    T, block, columns = F // U, slice(start, start + B), slice(column, column + B)
    for f in range(F):
        scores[row + f, columns] = 0
    if len(shared_UDL) > 0:
        for u in range(U):
            own = scores[row + u * T : row + u * T + T, columns]
            add_product(token_FD[u * T : u * T + T], shared_UDL[u, :, block], own)
        add_product(by_row_FR, coefficients_RB, scores[row : row + F, columns])
        for f in range(F):
            score_B = scores[row + f, columns]
            for x in range(np.uint64(B)):
                score_B[x] *= scale_B[x]
    for u in range(U):
        own = scores[row + u * T : row + u * T + T, columns]
        add_product(token_FD[u * T : u * T + T], placed_UDL[u, :, block], own)


@njit(**OPTIONS)
def _multiply(x_D, factor):
    for d in range(np.uint64(len(x_D))):
        x_D[d] *= factor


@njit(**OPTIONS)
def _highest(x_B, lanes):
    """The maximum. In LANES parts, because LLVM does not vectorise one running maximum."""
    lanes[:] = -np.inf
    whole = len(x_B) - len(x_B) % LANES
    for start in range(0, whole, LANES):
        part = x_B[start : start + LANES]
        for lane in range(np.uint64(LANES)):
            lanes[lane] = part[lane] if part[lane] > lanes[lane] else lanes[lane]
    highest = np.float32(-np.inf)
    for lane in range(LANES):
        highest = max(highest, lanes[lane])
    for x in range(whole, len(x_B)):
        highest = max(highest, x_B[x])
    return highest


@njit(**OPTIONS)
def _softmax_over_rows(x_TL, start, scale_B, total_B):
    """The softmax over the rows / scale, in place, for columns from `start` on. `total_B` is overwritten."""
    exponentials_over_rows(x_TL, start, total_B)
    T, B = len(x_TL), len(total_B)
    block = slice(start, start + B)
    for x in range(np.uint64(B)):
        total_B[x] = np.float32(1) / (total_B[x] * scale_B[x])
    for t in range(T):
        x_B = x_TL[t, block]
        for x in range(np.uint64(B)):
            x_B[x] *= total_B[x]
