"""The two-way transformer with image tokens in factored form: the same function for prompts that share an image.

A block adds a weighted sum of the prompt's value vectors to each image token, then normalises it. There are far fewer
value vectors (one per head and prompt token) than channels. So the image tokens of a prompt have the form

    x_l = scale_l * (shared_l + coefficients_l @ basis)

where `shared` is equal for all prompts of the image, and `basis` holds the value vectors and the biases of the norms.
The decoder needs only linear functions of x. This file computes those of `shared` once per image and those of `basis`
once per prompt, and never computes x. The variance that a layer norm needs follows from the Gram matrix of `basis`.

Shapes: N prompts, T prompt tokens, L image tokens, C channels, U heads, D features per head, E = N*T tokens of all
prompts, F = U*T tokens of a prompt for each head (head by head), R rows of the basis, O output channels, G heads of a
block and all earlier ones, H earlier blocks, V = D + 1 features of a value vector (the last one is 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from maskmill.model.inference.token_side import (
    TokenSideBlock,
    TokenSideTransformer,
    TokensToImage,
    heads_by_prompt,
    rows_by_prompt,
    split_heads,
)
from maskmill.model.layers import fast_linear
from maskmill.model.mask_decoder import DecodedPrompts

if TYPE_CHECKING:
    from maskmill.model.inference.low_rank_kernels import Scores


class Projected(NamedTuple):
    """A projection of x_l + position_l, per head, without the part of the basis."""

    shared_UDL: Tensor  # to be multiplied by the scale, which is 1 before the first update: then empty
    placed_UDL: Tensor  # positions and bias; before the first update also the image tokens


class PreparedBlock(NamedTuple):
    """What all prompts share in one block."""

    keys: Projected
    values_UDL: Tensor
    queries: Projected
    length_L: Tensor  # squared length of the centred shared tokens
    # Twice the products of the centred shared tokens with the value vectors of the heads of all blocks up to this one,
    # and with the biases of the earlier norms.
    overlaps_GVL: Tensor
    bias_overlaps_HL: Tensor


class PreparedImage(NamedTuple):
    """What all prompts of an image share."""

    blocks: tuple[PreparedBlock, ...]
    final_keys: Projected
    final_values_UDL: Tensor
    projected_OL: Tensor  # a linear function of the shared tokens after the last block


@dataclass(frozen=True)
class FactoredTokens:
    """Image tokens x_l = scale_l * (shared_l + coefficients_l @ basis) of N prompts."""

    # Of the linear function that `LowRankTransformer.prepare` was given, the part of the shared tokens, without scale.
    projected_OL: Tensor
    scale_NL: Tensor
    coefficients_NRL: Tensor
    basis_NRC: Tensor

    def project(self, n: int, weight_OC: Tensor) -> Tensor:
        """The linear function (O, L) of the image tokens of a prompt."""
        own_OL = fast_linear(fast_linear(weight_OC, self.basis_NRC[n]), self.coefficients_NRL[n].mT)
        return self.scale_NL[n] * (self.projected_OL + own_OL)


@dataclass(frozen=True, kw_only=True)
class FactoredPrompts(DecodedPrompts):
    """Decoded prompts with image tokens in factored form. `image_tokens_NCYX` is empty except for its grid."""

    factored: FactoredTokens


class LowRankTransformer:
    """A `TokenSideTransformer` in float32 on a CPU, for prompts that share an image. Has its weights."""

    def __init__(self, token_side: TokenSideTransformer) -> None:
        self._blocks, self._final = token_side.blocks, token_side.final
        self._norm = token_side.transformer.norm_final_attn

    def prepare(self, image_1LC: Tensor, positions_1LC: Tensor, weight_OC: Tensor) -> PreparedImage:
        """Projects the image tokens of the encoder and their positions.

        `weight_OC` is the linear function that `FactoredTokens.project` will get.
        """
        shared_LC, positions_LC = image_1LC[0].contiguous(), positions_1LC[0].contiguous()
        blocks = []
        for i, block in enumerate(self._blocks):
            place = _Placing(shared_LC, positions_LC, is_first=i == 0)
            centred_LC = _centre(shared_LC)
            overlaps, bias_overlaps, factor_LC = [], [], centred_LC
            for earlier in reversed(self._blocks[: i + 1]):
                if earlier is not block:
                    bias_overlaps.insert(0, factor_LC @ earlier.block.norm4.bias)
                    factor_LC = _centre(factor_LC * earlier.block.norm4.weight)
                overlaps.insert(0, _project_for_overlap(earlier, factor_LC))
            blocks.append(
                PreparedBlock(
                    keys=place(block.to_image.attention.k_proj, block.heads, with_bias=False),
                    values_UDL=_by_head(fast_linear(shared_LC, block.to_image.attention.v_proj.weight), block.heads),
                    queries=place(block.to_tokens.attention.q_proj, block.heads),
                    length_L=centred_LC.square().sum(dim=1),
                    overlaps_GVL=2 * torch.cat(overlaps),
                    bias_overlaps_HL=2 * torch.stack(bias_overlaps)
                    if bias_overlaps
                    else shared_LC.new_empty(0, len(shared_LC)),
                )
            )
            shared_LC = centred_LC * block.block.norm4.weight
        attention = self._final.attention
        place = _Placing(shared_LC, positions_LC, is_first=not blocks)
        return PreparedImage(
            blocks=tuple(blocks),
            final_keys=place(attention.k_proj, attention.heads, with_bias=False),
            final_values_UDL=_by_head(fast_linear(shared_LC, attention.v_proj.weight), attention.heads),
            projected_OL=fast_linear(weight_OC, shared_LC),
        )

    def __call__(self, tokens_NTC: Tensor, image: PreparedImage) -> tuple[Tensor, FactoredTokens]:
        """Returns the updated tokens (N, T, C) and image tokens."""
        state = _State(tokens_NTC, image, self._blocks)
        x_NTC = tokens_NTC
        for block, prepared in zip(self._blocks, image.blocks, strict=True):
            x_NTC = block.block.attend_to_tokens(x_NTC, tokens_NTC)
            seen_NTC = state.attend(block.to_image, x_NTC + tokens_NTC, prepared.keys, prepared.values_UDL)
            x_NTC = block.update_tokens(x_NTC, seen_NTC)
            state.update(block, x_NTC, x_NTC + tokens_NTC, prepared)
        seen_NTC = state.attend(self._final, x_NTC + tokens_NTC, image.final_keys, image.final_values_UDL)
        return self._norm(x_NTC + seen_NTC), state.image_tokens()


class _Placing:
    """Projects shared tokens and positions."""

    def __init__(self, shared_LC: Tensor, positions_LC: Tensor, is_first: bool) -> None:
        self._shared_LC, self._positions_LC, self._is_first = shared_LC, positions_LC, is_first

    def __call__(self, projection: nn.Linear, heads: int, with_bias: bool = True) -> Projected:
        # The softmax over keys cancels the key bias.
        bias = projection.bias if with_bias else None
        if self._is_first:
            placed_LC = self._shared_LC + self._positions_LC
            placed_UDL = _by_head(fast_linear(placed_LC, projection.weight, bias), heads)
            return Projected(placed_UDL[:0], placed_UDL)
        return Projected(
            _by_head(fast_linear(self._shared_LC, projection.weight), heads),
            _by_head(fast_linear(self._positions_LC, projection.weight, bias), heads),
        )


class _State:
    """The image tokens of N prompts between two updates."""

    def __init__(self, tokens_NTC: Tensor, image: PreparedImage, blocks: list[TokenSideBlock]) -> None:
        (N, T, C), L = tokens_NTC.shape, image.projected_OL.shape[1]
        self._image, self._tokens = image, T
        self._scale_NL = tokens_NTC.new_ones(N, L)
        # Each update adds the rows of its value vectors and one for the bias of its norm.
        rows = sum(block.heads * T + 1 for block in blocks)
        self._coefficients_NRL = tokens_NTC.new_empty(N, rows, L)
        self._basis_NRC = tokens_NTC.new_empty(N, rows, C)
        self._rank = 0
        self._values: list[Tensor] = []  # (N, F, V) of each block

    def image_tokens(self) -> FactoredTokens:
        return FactoredTokens(self._image.projected_OL, self._scale_NL, self._coefficients_NRL, self._basis_NRC)

    def attend(self, attention: TokensToImage, query_NTC: Tensor, keys: Projected, values_UDL: Tensor) -> Tensor:
        """Attention from prompt tokens to the image (N, T, C)."""
        from maskmill.model.inference import low_rank_kernels

        N, T, _ = query_NTC.shape
        scores = self._scores(attention.query(query_NTC), attention.key_UDC, keys)
        seen_NFD, seen_NFR = low_rank_kernels.attend(scores, self._coefficients_NRL, self._scale_NL, values_UDL)
        seen_UED = heads_by_prompt(seen_NFD, T)
        if self._rank:
            seen_NFC = seen_NFR @ self._basis_NRC[:, : self._rank]
            seen_UED = seen_UED + heads_by_prompt(seen_NFC, T) @ attention.value_UCD
        return attention.project_out(seen_UED, N)

    def update(self, block: TokenSideBlock, value_NTC: Tensor, key_NTC: Tensor, prepared: PreparedBlock) -> None:
        """Attention from the image to prompt tokens, residual sum and layer norm."""
        from maskmill.model.inference import low_rank_kernels

        N, first, last = len(value_NTC), self._rank, self._rank + block.heads * self._tokens
        scores = self._scores(block.to_tokens.key(key_NTC), block.to_tokens.query_UDC, prepared.queries)
        value_UED = split_heads(block.to_tokens.attention.v_proj(value_NTC), block.heads)
        value_UED = torch.cat([value_UED, torch.ones_like(value_UED[..., :1])], dim=2)
        self._values.append(rows_by_prompt(value_UED, N))
        basis_NRC = self._basis_NRC[:, :last]
        basis_NRC[:, first:] = block.to_tokens.values(value_NTC)
        basis_NRC -= basis_NRC.mean(dim=2, keepdim=True)
        gram_NRR = basis_NRC @ basis_NRC.mT
        # Symmetric: for a quadratic form the lower half is enough, if what is left out counts twice in it.
        gram_NRR = gram_NRR.tril() + gram_NRR.tril(-1)
        values_NGV = torch.cat(self._values, dim=1)
        shared = prepared.overlaps_GVL, prepared.bias_overlaps_HL, prepared.length_L
        norm = block.block.norm4
        low_rank_kernels.update(
            scores, gram_NRR, values_NGV, *shared, basis_NRC.shape[2], norm.eps, self._coefficients_NRL, self._scale_NL
        )
        basis_NRC *= norm.weight
        self._basis_NRC[:, last] = norm.bias
        self._rank = last + 1

    def _scores(self, token_UED: Tensor, weight_UDC: Tensor, image: Projected) -> Scores:
        from maskmill.model.inference import low_rank_kernels

        token_NFD = rows_by_prompt(token_UED, len(self._scale_NL)).contiguous()
        basis_NRC = self._basis_NRC[:, : self._rank]
        by_row_NFR = rows_by_prompt(token_UED @ weight_UDC, len(token_NFD)) @ basis_NRC.mT
        return low_rank_kernels.Scores(token_NFD, image.shared_UDL, image.placed_UDL, by_row_NFR)


def _project_for_overlap(block: TokenSideBlock, image_LC: Tensor) -> Tensor:
    """Products of image tokens with the columns of the output projection and its bias, (U, D + 1, L)."""
    projection = block.to_tokens.attention.out_proj
    columns_UDL = _by_head(fast_linear(image_LC, projection.weight.T), block.heads)
    # The output bias is added to the value vectors of the first head.
    bias_U1L = columns_UDL.new_zeros(block.heads, 1, len(image_LC))
    bias_U1L[0, 0] = image_LC @ projection.bias
    return torch.cat([columns_UDL, bias_U1L], dim=1)


def _by_head(x_LI: Tensor, heads: int) -> Tensor:
    """Returns (U, D, L)."""
    return x_LI.T.unflatten(0, (heads, -1)).contiguous()


def _centre(x_LC: Tensor) -> Tensor:
    return x_LC - x_LC.mean(dim=-1, keepdim=True)
