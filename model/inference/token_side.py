"""The two-way transformer with projections applied to prompt tokens only: the same function with a third of the work.

A prompt has seven tokens, an image has thousands. The published formula projects every image token. This file moves the
projection to the prompt tokens: (W_q x) . (W_k y) = (W_k^T W_q x) . y. Value and output projections are combined in the
same way. The softmax over keys cancels the key bias, the query bias becomes one number per token, and attention weights
sum to one, so the value and output biases are added to the output as constants.

In the first block all prompts of an image share the image tokens. It uses the published formula, with the projections
of the image computed once for all prompts.

Prompt tokens are computed in float32, image tokens in a chosen dtype.

Shapes: B images (1 if all prompts share one, else N), N prompts, T prompt tokens, L image tokens, C channels, U heads,
D features per head, E = N*T tokens of all prompts, F = U*T tokens of a prompt for each head (head by head), I O inner
and outer axis of a product.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskmill.model.inference import fused_ops
from maskmill.model.layers import fast_bmm, fast_mlp, require_class
from maskmill.model.transformer import CrossAttention, TwoWayBlock, TwoWayTransformer


class PreparedImage(NamedTuple):
    """Projections of an image that all its prompts share."""

    tokens_BLC: Tensor
    placed_BLC: Tensor  # tokens plus positions
    positions_1LC: Tensor
    # Projections for the first block, per head, in float32. Key and value are for the attention from prompt tokens to
    # the image, the query is for the attention from the image to prompt tokens.
    key_UBDL: Tensor
    value_UBLD: Tensor
    query_UBDL: Tensor


class TokenSideTransformer:
    """Replaces a `TwoWayTransformer` at inference. Later changes to the weights of the transformer are ignored.

    Raises TypeError if a layer is not exactly a `TwoWayBlock`.
    """

    def __init__(self, transformer: TwoWayTransformer, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self.transformer = transformer
        for name, layer in transformer.layers.named_children():
            require_class(f"transformer.layers.{name}", layer, TwoWayBlock)
        self.blocks = [TokenSideBlock(cast(TwoWayBlock, layer), dtype) for layer in transformer.layers]
        self.final = TokensToImage(transformer.final_attn_token_to_image, dtype)

    def prepare(self, image_BLC: Tensor, positions_1LC: Tensor) -> PreparedImage:
        """Projects the image tokens of the encoder and their positions."""
        # The encoder returns channels first in memory. The operations below read token by token.
        image_BLC, positions_1LC = image_BLC.contiguous(), positions_1LC.contiguous()
        placed_BLC = image_BLC + positions_1LC
        block = self.blocks[0].block
        to_image, to_tokens = block.cross_attn_token_to_image, block.cross_attn_image_to_token
        # The softmax over keys cancels the key bias. `project_out` adds the value bias.
        key_BLD = F.linear(placed_BLC, to_image.k_proj.weight)
        value_BLD = F.linear(image_BLC, to_image.v_proj.weight)
        query_BLD = to_tokens.q_proj(placed_BLC)
        heads = [x.unflatten(-1, (to_image.heads, -1)).permute(2, 0, 3, 1) for x in (key_BLD, value_BLD, query_BLD)]
        return PreparedImage(
            tokens_BLC=image_BLC.to(self._dtype),
            placed_BLC=placed_BLC.to(self._dtype),
            positions_1LC=positions_1LC.to(self._dtype),
            key_UBDL=heads[0].contiguous(),
            value_UBLD=heads[1].mT.contiguous(),
            query_UBDL=heads[2].contiguous(),
        )

    def __call__(self, tokens_NTC: Tensor, image: PreparedImage) -> tuple[Tensor, Tensor]:
        """Returns the updated tokens (N, T, C) in float32 and image tokens (N, L, C) in `dtype`."""
        x_NTC, image_NLC, placed_NLC = self.blocks[0].first(tokens_NTC, image)
        for block in self.blocks[1:]:
            x_NTC, image_NLC, placed_NLC = block(x_NTC, image_NLC, placed_NLC, tokens_NTC, image.positions_1LC)
        attended_NTC = self.final(x_NTC + tokens_NTC, placed_NLC, image_NLC)
        return self.transformer.norm_final_attn(x_NTC + attended_NTC), image_NLC


class TokenSideBlock:
    """One `TwoWayBlock` with its weights rearranged."""

    def __init__(self, block: TwoWayBlock, dtype: torch.dtype) -> None:
        self.block, self.heads = block, block.cross_attn_token_to_image.heads
        self.to_image = TokensToImage(block.cross_attn_token_to_image, dtype)
        self.to_tokens = ImageToTokens(block.cross_attn_image_to_token, dtype)

    def first(self, prompts_NTC: Tensor, image: PreparedImage) -> tuple[Tensor, Tensor, Tensor]:
        """Runs as the first block: its input tokens are the prompt tokens themselves."""
        x_NTC = self.block.attend_to_tokens(prompts_NTC, prompts_NTC)
        x_NTC = self.update_tokens(x_NTC, self.to_image.prepared(x_NTC + prompts_NTC, image))
        weights_NFL = self.to_tokens.prepared_weights(x_NTC + prompts_NTC, image)
        return x_NTC, *self._update_image(image.tokens_BLC, weights_NFL, x_NTC, image.positions_1LC)

    def __call__(
        self, x_NTC: Tensor, image_NLC: Tensor, placed_NLC: Tensor, prompts_NTC: Tensor, positions_1LC: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        x_NTC = self.block.attend_to_tokens(x_NTC, prompts_NTC)
        x_NTC = self.update_tokens(x_NTC, self.to_image(x_NTC + prompts_NTC, placed_NLC, image_NLC))
        weights_NFL = self.to_tokens.weights(x_NTC + prompts_NTC, placed_NLC)
        return x_NTC, *self._update_image(image_NLC, weights_NFL, x_NTC, positions_1LC)

    def update_tokens(self, x_NTC: Tensor, attended_NTC: Tensor) -> Tensor:
        """The prompt tokens after their attention to the image and the MLP."""
        x_NTC = self.block.norm2(x_NTC + attended_NTC)
        return self.block.norm3(x_NTC + fast_mlp(self.block.mlp, x_NTC))

    def _update_image(
        self, image_BLC: Tensor, weights_NFL: Tensor, x_NTC: Tensor, positions_1LC: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The updated image tokens (N, L, C), without and with positions added."""
        values_NFC = self.to_tokens.values(x_NTC)
        return fused_ops.update_and_norm(weights_NFL, values_NFC, image_BLC, positions_1LC, self.block.norm4)


class TokensToImage:
    """`CrossAttention` from prompt tokens (queries) to image tokens (keys and values)."""

    def __init__(self, attention: CrossAttention, dtype: torch.dtype) -> None:
        self.attention, self._dtype = attention, dtype
        self.key_UDC = _by_head(attention.k_proj, attention.heads)
        self.value_UCD = _by_head(attention.v_proj, attention.heads).transpose(1, 2).contiguous()

    def __call__(self, query_NTC: Tensor, key_NLC: Tensor, value_NLC: Tensor) -> Tensor:
        N, T, _ = query_NTC.shape
        # With the key projection applied, queries have C channels and are compared with unprojected image tokens.
        query_NFC = rows_by_prompt(self.query(query_NTC) @ self.key_UDC, N).to(self._dtype)
        seen_NFC = fast_bmm(fast_bmm(query_NFC, key_NLC.mT).softmax(dim=-1), value_NLC)
        return self.project_out(heads_by_prompt(seen_NFC.float(), T) @ self.value_UCD, N)

    def prepared(self, query_NTC: Tensor, image: PreparedImage) -> Tensor:
        """The same in the first block, with the projections of `image`."""
        weights_UEL = _by_image(self.query(query_NTC), image.key_UBDL).softmax(dim=-1)
        return self.project_out(_by_image(weights_UEL, image.value_UBLD), len(query_NTC))

    def query(self, query_NTC: Tensor) -> Tensor:
        query_UED = split_heads(self.attention.q_proj(query_NTC), self.attention.heads)
        return query_UED * query_UED.shape[-1] ** -0.5

    def project_out(self, x_UED: Tensor, prompts: int) -> Tensor:
        x_NTD = x_UED.transpose(0, 1).reshape(prompts, -1, self.attention.v_proj.out_features)
        return self.attention.out_proj(x_NTD + self.attention.v_proj.bias)


class ImageToTokens:
    """`CrossAttention` from image tokens (queries) to prompt tokens: the product of `weights` and `values`."""

    def __init__(self, attention: CrossAttention, dtype: torch.dtype) -> None:
        self.attention, self._dtype = attention, dtype
        self.query_UDC = _by_head(attention.q_proj, attention.heads)
        self._query_bias_UD1 = attention.q_proj.bias.view(attention.heads, -1, 1)
        self._out_UDC = attention.out_proj.weight.T.unflatten(0, (attention.heads, -1)).contiguous()

    def weights(self, key_NTC: Tensor, query_NLC: Tensor) -> Tensor:
        """Attention weights (N, F, L): the softmax over the T tokens of a head, for each image token."""
        N, key_UED = len(key_NTC), self.key(key_NTC)
        key_NFC = rows_by_prompt(key_UED @ self.query_UDC, N).to(self._dtype)
        bias_NF1 = rows_by_prompt(key_UED @ self._query_bias_UD1, N).to(self._dtype)
        score_NFL = fast_bmm(key_NFC, query_NLC.mT).add_(bias_NF1)
        return score_NFL.unflatten(1, (self.attention.heads, -1)).softmax(dim=2).flatten(1, 2)

    def prepared_weights(self, key_NTC: Tensor, image: PreparedImage) -> Tensor:
        """The same in the first block, with the projections of `image`."""
        score_UNTL = _by_image(self.key(key_NTC), image.query_UBDL).unflatten(1, key_NTC.shape[:2])
        return rows_by_prompt(score_UNTL.softmax(dim=2).flatten(1, 2).to(self._dtype), len(key_NTC))

    def values(self, value_NTC: Tensor) -> Tensor:
        """Values (N, F, C) with value and output projection applied."""
        value_UEC = split_heads(self.attention.v_proj(value_NTC), self.attention.heads) @ self._out_UDC
        # The weights of a head sum to one, so the output bias is added to the values of one head.
        value_UEC[0] += self.attention.out_proj.bias
        return rows_by_prompt(value_UEC, len(value_NTC)).to(self._dtype)

    def key(self, key_NTC: Tensor) -> Tensor:
        # A constant added to all keys of a head does not change the softmax. Subtracting their mean
        # reduces the rounding errors of the scores.
        key_NTD = self.attention.k_proj(key_NTC)
        key_UED = split_heads(key_NTD - key_NTD.mean(dim=1, keepdim=True), self.attention.heads)
        return key_UED * key_UED.shape[-1] ** -0.5


def _by_head(projection: nn.Linear, heads: int) -> Tensor:
    """The weight of a projection as (U, D, C)."""
    return projection.weight.unflatten(0, (heads, -1))


def split_heads(x_NTC: Tensor, heads: int) -> Tensor:
    """Returns (U, E, D)."""
    return x_NTC.flatten(0, 1).unflatten(-1, (heads, -1)).transpose(0, 1)


def rows_by_prompt(x_UEC: Tensor, prompts: int) -> Tensor:
    """Returns (N, F, C)."""
    return x_UEC.unflatten(1, (prompts, -1)).transpose(0, 1).flatten(1, 2)


def heads_by_prompt(x_NFC: Tensor, tokens: int) -> Tensor:
    """Returns (U, E, C), the inverse of `rows_by_prompt`."""
    return x_NFC.unflatten(1, (-1, tokens)).transpose(0, 1).flatten(1, 2)


def _by_image(x_UEI: Tensor, y_UBIO: Tensor) -> Tensor:
    """Matrix products (U, E, O) over I: one large product per head if all prompts share an image."""
    images = y_UBIO.shape[1]
    x_UBEI = x_UEI.unflatten(1, (images, -1))
    return fast_bmm(x_UBEI.flatten(0, 1), y_UBIO.flatten(0, 1)).view(len(x_UEI), x_UEI.shape[1], -1)
