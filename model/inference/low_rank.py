"""The two-way transformer with image tokens in factored form: the same function for prompts that share an image.

A block adds a weighted sum of the prompt's value vectors to each image token, then normalises it. There are far fewer
value vectors (one per head and prompt token) than channels. So the image tokens of a prompt have the form

    x_l = scale_l * shared_l + coefficients_l @ basis

where `shared` is equal for all prompts of the image, and `basis` holds the value vectors and the biases of the norms.
The decoder needs only linear functions of x. This file computes those of `shared` once per image and those of `basis`
once per prompt, and never computes x. The variance that a layer norm needs follows from the Gram matrix of `basis`.

Shapes: N prompts, T prompt tokens, L image tokens, C channels, U heads, D features per head, E = N*T tokens of all
prompts, F = U*T tokens of a prompt for each head (head by head), R rows of the basis, O output channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from maskmill.model.inference import cpu_kernels
from maskmill.model.inference.token_side import (
    ImageToTokens,
    TokensToImage,
    heads_by_prompt,
    rows_by_prompt,
    split_heads,
)
from maskmill.model.layers import fast_bmm, fast_linear, fast_mlp
from maskmill.model.transformer import TwoWayBlock, TwoWayTransformer


class Projected(NamedTuple):
    """A projection of x_l + position_l, per head, without the part of the basis."""

    shared_UDL: Tensor | None  # to be multiplied by the scale; None before the first update, when the scale is 1
    placed_UDL: Tensor  # positions and bias; before the first update also the image tokens


class PreparedBlock(NamedTuple):
    """What all prompts share in one block."""

    keys: Projected
    values_UDL: Tensor
    queries: Projected
    length_L: Tensor  # squared length of the centred shared tokens
    # Products of the centred shared tokens with the value vectors of this and all earlier blocks (U, D + 1, L), and
    # with the biases of the earlier norms (L).
    overlaps_UDL: tuple[Tensor, ...]
    bias_overlaps_L: tuple[Tensor, ...]


class PreparedImage(NamedTuple):
    """What all prompts of an image share."""

    blocks: tuple[PreparedBlock, ...]
    final_keys: Projected
    final_values_UDL: Tensor
    projected_LO: Tensor  # the linear function of the shared tokens after the last block


@dataclass(frozen=True)
class FactoredTokens:
    """Image tokens x_l = scale_l * shared_l + coefficients_l @ basis of N prompts."""

    projected_LO: Tensor  # what `project` needs of the shared tokens
    scale_NL: Tensor
    coefficients_NRL: Tensor
    basis_NRC: Tensor

    def project(self, rows_Z: Tensor, weight_OC: Tensor, bias_O: Tensor) -> Tensor:
        """A linear function (Z, L, O) of the image tokens of some prompts: the one that `prepare` was given."""
        projected_ZLO = self.projected_LO.new_empty(len(rows_Z), *self.projected_LO.shape)
        for n, out_LO in zip(rows_Z.tolist(), projected_ZLO, strict=True):
            basis_RO = fast_linear(self.basis_NRC[n], weight_OC)
            own_LO = fast_linear(self.coefficients_NRL[n].mT, basis_RO.mT, bias_O)
            torch.addcmul(own_LO, self.scale_NL[n, :, None], self.projected_LO, out=out_LO)
        return projected_ZLO


class LowRankTransformer:
    """Replaces a `TwoWayTransformer` at inference, in float32 on a CPU, for prompts that share an image."""

    def __init__(self, transformer: TwoWayTransformer) -> None:
        self._transformer = transformer
        self._blocks = [_Block(block) for block in transformer.layers if isinstance(block, TwoWayBlock)]
        self._final = TokensToImage(transformer.final_attn_token_to_image, torch.float32)

    def prepare(self, image_1LC: Tensor, positions_1LC: Tensor, weight_OC: Tensor) -> PreparedImage:
        """Projects the image tokens of the encoder and their positions. `weight_OC` is for `FactoredTokens.project`."""
        shared_LC, positions_LC = image_1LC[0].contiguous(), positions_1LC[0].contiguous()
        blocks = []
        for i, block in enumerate(self._blocks):
            place = _Placing(shared_LC, positions_LC, is_first=i == 0)
            centred_LC = _centre(shared_LC)
            overlaps, bias_overlaps, factor_LC = [], [], centred_LC
            for earlier in reversed(self._blocks[: i + 1]):
                if earlier is not block:
                    bias_overlaps.insert(0, factor_LC @ earlier.norm.bias)
                    factor_LC = _centre(factor_LC * earlier.norm.weight)
                overlaps.insert(0, earlier.project_for_overlap(factor_LC))
            blocks.append(
                PreparedBlock(
                    keys=place(block.to_image.attention.k_proj, block.heads, with_bias=False),
                    values_UDL=_by_head(fast_linear(shared_LC, block.to_image.attention.v_proj.weight), block.heads),
                    queries=place(block.to_tokens.attention.q_proj, block.heads),
                    length_L=centred_LC.square().sum(dim=1),
                    overlaps_UDL=tuple(overlaps),
                    bias_overlaps_L=tuple(bias_overlaps),
                )
            )
            shared_LC = centred_LC * block.norm.weight
        attention = self._final.attention
        place = _Placing(shared_LC, positions_LC, is_first=not blocks)
        return PreparedImage(
            blocks=tuple(blocks),
            final_keys=place(attention.k_proj, attention.heads, with_bias=False),
            final_values_UDL=_by_head(fast_linear(shared_LC, attention.v_proj.weight), attention.heads),
            projected_LO=fast_linear(shared_LC, weight_OC),
        )

    def __call__(self, tokens_NTC: Tensor, image: PreparedImage) -> tuple[Tensor, FactoredTokens]:
        """Returns the updated tokens (N, T, C) and image tokens."""
        state = _State(tokens_NTC, image, self._blocks)
        x_NTC = tokens_NTC
        for block, prepared in zip(self._blocks, image.blocks, strict=True):
            x_NTC = block.block.attend_to_tokens(x_NTC, tokens_NTC)
            seen_NTC = state.attend(block.to_image, x_NTC + tokens_NTC, prepared.keys, prepared.values_UDL)
            x_NTC = block.block.norm2(x_NTC + seen_NTC)
            x_NTC = block.block.norm3(x_NTC + fast_mlp(block.block.mlp, x_NTC))
            state.update(block, x_NTC, x_NTC + tokens_NTC, prepared)
        seen_NTC = state.attend(self._final, x_NTC + tokens_NTC, image.final_keys, image.final_values_UDL)
        return self._transformer.norm_final_attn(x_NTC + seen_NTC), state.image_tokens()


class _Block:
    """One `TwoWayBlock` with its weights rearranged."""

    def __init__(self, block: TwoWayBlock) -> None:
        self.block, self.norm, self.heads = block, block.norm4, block.cross_attn_token_to_image.heads
        self.to_image = TokensToImage(block.cross_attn_token_to_image, torch.float32)
        self.to_tokens = ImageToTokens(block.cross_attn_image_to_token, torch.float32)

    def project_for_overlap(self, image_LC: Tensor) -> Tensor:
        """Products of image tokens with the columns of the output projection and its bias, (U, D + 1, L)."""
        projection = self.to_tokens.attention.out_proj
        columns_UDL = _by_head(fast_linear(image_LC, projection.weight.T), self.heads)
        # The output bias is added to the value vectors of the first head.
        bias_U1L = columns_UDL.new_zeros(self.heads, 1, len(image_LC))
        bias_U1L[0, 0] = image_LC @ projection.bias
        return torch.cat([columns_UDL, bias_U1L], dim=1)


class _Placing:
    """Projects shared tokens and positions."""

    def __init__(self, shared_LC: Tensor, positions_LC: Tensor, is_first: bool) -> None:
        self._shared_LC, self._positions_LC, self._is_first = shared_LC, positions_LC, is_first

    def __call__(self, projection: nn.Linear, heads: int, with_bias: bool = True) -> Projected:
        # The softmax over keys cancels the key bias.
        bias = projection.bias if with_bias else None
        if self._is_first:
            placed_LC = self._shared_LC + self._positions_LC
            return Projected(None, _by_head(fast_linear(placed_LC, projection.weight, bias), heads))
        return Projected(
            _by_head(fast_linear(self._shared_LC, projection.weight), heads),
            _by_head(fast_linear(self._positions_LC, projection.weight, bias), heads),
        )


class _State:
    """The image tokens of N prompts between two updates.

    Image-sized tensors are processed prompt by prompt, so that those of one prompt stay in the caches.
    """

    def __init__(self, tokens_NTC: Tensor, image: PreparedImage, blocks: list[_Block]) -> None:
        (N, T, C), L = tokens_NTC.shape, len(image.projected_LO)
        self._image, self._tokens = image, T
        self._scale_NL = tokens_NTC.new_ones(N, L)
        # Each update adds the rows of its value vectors and one for the bias of its norm.
        rows = sum(block.heads * T + 1 for block in blocks)
        self._coefficients_NRL = tokens_NTC.new_empty(N, rows, L)
        self._basis_NRC = tokens_NTC.new_empty(N, rows, C)
        self._rank = 0
        self._values_NFD: list[Tensor] = []

    def image_tokens(self) -> FactoredTokens:
        return FactoredTokens(self._image.projected_LO, self._scale_NL, self._coefficients_NRL, self._basis_NRC)

    def attend(self, attention: TokensToImage, query_NTC: Tensor, keys: Projected, values_UDL: Tensor) -> Tensor:
        """Attention from prompt tokens to the image (N, T, C)."""
        (N, T, _), L = query_NTC.shape, self._scale_NL.shape[1]
        query_UED = attention.query(query_NTC)
        query_NFD, by_row_NFR = self._products_of_tokens(query_UED, attention.key_UDC)
        weights_UNTL = query_NTC.new_empty(len(query_UED), N, T, L)
        seen = []
        for n in range(N):
            weights_FL = self._scores(n, by_row_NFR[n], query_NFD[n], keys).softmax(dim=-1)
            torch.mul(weights_FL.unflatten(0, (-1, T)), self._scale_NL[n], out=weights_UNTL[:, n])
            if self._rank:
                seen.append(fast_linear(weights_FL, self._coefficients_NRL[n, : self._rank]))
        seen_UED = fast_bmm(weights_UNTL.flatten(1, 2), values_UDL.mT)
        if self._rank:
            seen_NFC = torch.stack(seen) @ self._basis_NRC[:, : self._rank]
            seen_UED = seen_UED + heads_by_prompt(seen_NFC, T) @ attention.value_UCD
        return attention.project_out(seen_UED, N)

    def update(self, block: _Block, value_NTC: Tensor, key_NTC: Tensor, prepared: PreparedBlock) -> None:
        """Attention from the image to prompt tokens, residual sum and layer norm."""
        N, first, last = len(value_NTC), self._rank, self._rank + block.heads * self._tokens
        key_NFD, by_row_NFR = self._products_of_tokens(block.to_tokens.key(key_NTC), block.to_tokens.query_UDC)
        value_UED = split_heads(block.to_tokens.attention.v_proj(value_NTC), block.heads)
        value_UED = torch.cat([value_UED, torch.ones_like(value_UED[..., :1])], dim=2)
        self._values_NFD.append(rows_by_prompt(value_UED, N))
        basis_NRC = self._basis_NRC[:, :last]
        basis_NRC[:, first:] = block.to_tokens.values(value_NTC)
        basis_NRC -= basis_NRC.mean(dim=2, keepdim=True)
        gram_NRR = basis_NRC @ basis_NRC.mT
        for n in range(N):
            coefficients_RL = self._coefficients_NRL[n]
            scores_FL = self._scores(n, by_row_NFR[n], key_NFD[n], prepared.queries)
            by_head = (block.heads, self._tokens)
            weights_UTL = coefficients_RL[first:last].unflatten(0, by_head)
            torch.softmax(scores_FL.unflatten(0, by_head), dim=1, out=weights_UTL)
            squares_L = self._squares(n, gram_NRR[n], coefficients_RL[:last], prepared)
            inverse_L = (squares_L.clamp_(min=0) / basis_NRC.shape[2] + block.norm.eps).rsqrt_()
            coefficients_RL[:last] *= inverse_L
            coefficients_RL[last] = 1
            self._scale_NL[n] *= inverse_L
        basis_NRC *= block.norm.weight
        self._basis_NRC[:, last] = block.norm.bias
        self._rank = last + 1

    def _squares(self, n: int, gram_RR: Tensor, coefficients_RL: Tensor, prepared: PreparedBlock) -> Tensor:
        """The squared length (L) of centred image tokens."""
        products_RL = fast_linear(gram_RR, coefficients_RL.mT)
        scale_L = self._scale_NL[n]
        squares_L = scale_L.square() * prepared.length_L
        start = 0
        for i, value_NFD in enumerate(self._values_NFD):
            end = start + value_NFD.shape[1]
            rows = coefficients_RL[start:end], products_RL[start:end], value_NFD[n]
            cpu_kernels.add_squares(*rows, prepared.overlaps_UDL[i], scale_L, squares_L)
            if i < len(prepared.bias_overlaps_L):
                overlap_L = 2 * scale_L * prepared.bias_overlaps_L[i]
                squares_L += coefficients_RL[end] * (products_RL[end] + overlap_L)
            start = end + 1
        return squares_L

    def _products_of_tokens(self, token_UED: Tensor, weight_UDC: Tensor) -> tuple[Tensor, Tensor]:
        """Projected tokens (N, F, D), and their products with the projected rows of the basis (N, F, R)."""
        N = len(self._scale_NL)
        token_NFC = rows_by_prompt(token_UED @ weight_UDC, N)
        return rows_by_prompt(token_UED, N), token_NFC @ self._basis_NRC[:, : self._rank].mT

    def _scores(self, n: int, by_row_FR: Tensor, token_FD: Tensor, image: Projected) -> Tensor:
        """Products (F, L) of projected tokens with projected image tokens."""
        scale_L = self._scale_NL[n]
        if self._rank:
            scores_FL = fast_linear(by_row_FR, self._coefficients_NRL[n, : self._rank].mT)
        else:
            scores_FL = scale_L.new_zeros(len(token_FD), len(scale_L))
        cpu_kernels.add_scores(scores_FL, token_FD, image.shared_UDL, image.placed_UDL, scale_L)
        return scores_FL


def _by_head(x_LI: Tensor, heads: int) -> Tensor:
    """Returns (U, D, L)."""
    return x_LI.T.unflatten(0, (heads, -1)).contiguous()


def _centre(x_LC: Tensor) -> Tensor:
    return x_LC - x_LC.mean(dim=-1, keepdim=True)
