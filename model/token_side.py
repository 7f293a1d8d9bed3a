"""The two-way transformer with its image-side projections moved to the tokens: the same function, a third of the work.

A prompt has seven tokens, the image thousands. Where the published formula projects every image token, this one
projects the prompt's tokens instead: (W_q x) . (W_k y) = (W_k^T W_q x) . y, and value and output projections fold
alike. Of the biases, the key's cancels in the softmax over keys, the query's becomes a number per token, and those of
value and output pass through unchanged, because what attention hands out sums to one.

The first block sees the same image tokens for all prompts of an image: there the published formula costs next to
nothing, once its projections of the image are computed ahead of all prompts.

Tokens are computed in float32, image tokens in a dtype of choice.

Shapes: B images (1 where all prompts share one, else N), N prompts, T tokens of a prompt, L image tokens, C channels, h
heads, D features per head.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskmill.model import fused_ops
from maskmill.model.layers import require_class
from maskmill.model.transformer import CrossAttention, TwoWayBlock, TwoWayTransformer


class PreparedImage(NamedTuple):
    """What the transformer computes of an image ahead of all prompts."""

    tokens_BLC: Tensor
    placed_BLC: Tensor  # with their positions
    positions_1LC: Tensor
    # The first block's, head by head, in float32: of tokens that ask the image, and of the image that asks tokens.
    key_UBDL: Tensor
    value_UBLD: Tensor
    query_UBDL: Tensor


class TokenSideTransformer:
    """Stands in for a `TwoWayTransformer` at inference, with that one's weights as they are now.

    Raises TypeError where a layer is of another class than `TwoWayBlock`.
    """

    def __init__(self, transformer: TwoWayTransformer, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._transformer = transformer
        for name, layer in transformer.layers.named_children():
            require_class(f"transformer.layers.{name}", layer, TwoWayBlock)
        self._blocks = [_Block(cast(TwoWayBlock, layer), dtype) for layer in transformer.layers]
        self._tokens_to_image = _TokensToImage(transformer.final_attn_token_to_image, dtype)

    def prepare(self, image_BLC: Tensor, positions_1LC: Tensor) -> PreparedImage:
        """Of image tokens as they come from the encoder, and their positions."""
        # Contiguous: they come channel by channel, and all that follows goes token by token.
        image_BLC, positions_1LC = image_BLC.contiguous(), positions_1LC.contiguous()
        placed_BLC = image_BLC + positions_1LC
        block = self._blocks[0].block
        ask_image, ask_tokens = block.cross_attn_token_to_image, block.cross_attn_image_to_token
        # The key's bias cancels in the softmax over keys, the value's is added to what attention hands out.
        key_BLD = F.linear(placed_BLC, ask_image.k_proj.weight)
        value_BLD = F.linear(image_BLC, ask_image.v_proj.weight)
        query_BLD = ask_tokens.q_proj(placed_BLC)
        heads = [x.unflatten(-1, (ask_image.heads, -1)).permute(2, 0, 3, 1) for x in (key_BLD, value_BLD, query_BLD)]
        return PreparedImage(
            tokens_BLC=image_BLC.to(self._dtype),
            placed_BLC=placed_BLC.to(self._dtype),
            positions_1LC=positions_1LC.to(self._dtype),
            key_UBDL=heads[0].contiguous(),
            value_UBLD=heads[1].mT.contiguous(),
            query_UBDL=heads[2].contiguous(),
        )

    def __call__(self, tokens_NTC: Tensor, image: PreparedImage) -> tuple[Tensor, Tensor]:
        """Returns the updated tokens (N, T, C) in float32 and image tokens (N, L, C) in the chosen dtype."""
        x_NTC, image_NLC, placed_NLC = self._blocks[0].first(tokens_NTC, image)
        for block in self._blocks[1:]:
            x_NTC, image_NLC, placed_NLC = block(x_NTC, image_NLC, placed_NLC, tokens_NTC, image.positions_1LC)
        attended_NTC = self._tokens_to_image(x_NTC + tokens_NTC, placed_NLC, image_NLC)
        return self._transformer.norm_final_attn(x_NTC + attended_NTC), image_NLC


class _Block:
    """`TwoWayBlock`."""

    def __init__(self, block: TwoWayBlock, dtype: torch.dtype) -> None:
        self.block = block
        self._tokens_to_image = _TokensToImage(block.cross_attn_token_to_image, dtype)
        self._image_to_tokens = _ImageToTokens(block.cross_attn_image_to_token, dtype)

    def first(self, prompts_NTC: Tensor, image: PreparedImage) -> tuple[Tensor, Tensor, Tensor]:
        """As the first block, whose tokens are the prompts themselves."""
        x_NTC = self.block.attend_to_tokens(prompts_NTC, prompts_NTC)
        x_NTC = self._update_tokens(x_NTC, self._tokens_to_image.prepared(x_NTC + prompts_NTC, image))
        share_NFL = self._image_to_tokens.prepared_shares(x_NTC + prompts_NTC, image)
        return x_NTC, *self._update_image(image.tokens_BLC, share_NFL, x_NTC, image.positions_1LC)

    def __call__(
        self, x_NTC: Tensor, image_NLC: Tensor, placed_NLC: Tensor, prompts_NTC: Tensor, positions_1LC: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        x_NTC = self.block.attend_to_tokens(x_NTC, prompts_NTC)
        x_NTC = self._update_tokens(x_NTC, self._tokens_to_image(x_NTC + prompts_NTC, placed_NLC, image_NLC))
        share_NFL = self._image_to_tokens.shares(x_NTC + prompts_NTC, placed_NLC)
        return x_NTC, *self._update_image(image_NLC, share_NFL, x_NTC, positions_1LC)

    def _update_tokens(self, x_NTC: Tensor, attended_NTC: Tensor) -> Tensor:
        x_NTC = self.block.norm2(x_NTC + attended_NTC)
        return self.block.norm3(x_NTC + self.block.mlp(x_NTC))

    def _update_image(
        self, image_BLC: Tensor, share_NFL: Tensor, x_NTC: Tensor, positions_1LC: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The image tokens (N, L, C), without and with their positions."""
        attended_NLC = share_NFL.transpose(1, 2) @ self._image_to_tokens.values(x_NTC)
        return fused_ops.add_and_norm(attended_NLC, image_BLC, positions_1LC, self.block.norm4)


class _TokensToImage:
    """`CrossAttention` of tokens that ask the image."""

    def __init__(self, attention: CrossAttention, dtype: torch.dtype) -> None:
        self._attention, self._dtype = attention, dtype
        self._key_UDC = _by_head(attention.k_proj, attention.heads)
        self._value_UCD = _by_head(attention.v_proj, attention.heads).transpose(1, 2).contiguous()

    def __call__(self, query_NTC: Tensor, key_NLC: Tensor, value_NLC: Tensor) -> Tensor:
        (N, T, _), heads = query_NTC.shape, self._attention.heads
        # As long as an image token: these are its keys without projection.
        query_NFC = _rows_by_prompt(self._query(query_NTC) @ self._key_UDC, N).to(self._dtype)
        seen_NFC = (query_NFC @ key_NLC.mT).softmax(dim=-1) @ value_NLC
        seen_UEC = seen_NFC.float().unflatten(1, (heads, T)).transpose(0, 1).flatten(1, 2)
        return self._project_out(seen_UEC @ self._value_UCD, N)

    def prepared(self, query_NTC: Tensor, image: PreparedImage) -> Tensor:
        """The same for the first block's image."""
        share_UEL = _by_image(self._query(query_NTC), image.key_UBDL).softmax(dim=-1)
        return self._project_out(_by_image(share_UEL, image.value_UBLD), len(query_NTC))

    def _query(self, query_NTC: Tensor) -> Tensor:
        query_UED = _split_heads(self._attention.q_proj(query_NTC), self._attention.heads)
        return query_UED * query_UED.shape[-1] ** -0.5

    def _project_out(self, x_UED: Tensor, prompts: int) -> Tensor:
        x_NTD = x_UED.transpose(0, 1).reshape(prompts, -1, self._attention.v_proj.out_features)
        return self._attention.out_proj(x_NTD + self._attention.v_proj.bias)


class _ImageToTokens:
    """`CrossAttention` of an image that asks tokens: the product of shares and values."""

    def __init__(self, attention: CrossAttention, dtype: torch.dtype) -> None:
        self._attention, self._dtype = attention, dtype
        self._query_UDC = _by_head(attention.q_proj, attention.heads)
        self._query_bias_UD1 = attention.q_proj.bias.view(attention.heads, -1, 1)
        self._out_UDC = attention.out_proj.weight.T.unflatten(0, (attention.heads, -1)).contiguous()

    def shares(self, key_NTC: Tensor, query_NLC: Tensor) -> Tensor:
        """How much of each token an image token takes, head by head: (N, Y, L)."""
        N, key_UED = len(key_NTC), self._key(key_NTC)
        key_NFC = _rows_by_prompt(key_UED @ self._query_UDC, N).to(self._dtype)
        bias_NF1 = _rows_by_prompt(key_UED @ self._query_bias_UD1, N).to(self._dtype)
        score_NFL = (key_NFC @ query_NLC.transpose(1, 2)).add_(bias_NF1)
        return score_NFL.unflatten(1, (self._attention.heads, -1)).softmax(dim=2).flatten(1, 2)

    def prepared_shares(self, key_NTC: Tensor, image: PreparedImage) -> Tensor:
        """The same for the first block's image."""
        score_UNTL = _by_image(self._key(key_NTC), image.query_UBDL).unflatten(1, key_NTC.shape[:2])
        return _rows_by_prompt(score_UNTL.softmax(dim=2).flatten(1, 2).to(self._dtype), len(key_NTC))

    def values(self, value_NTC: Tensor) -> Tensor:
        """What an image token gets of each token, head by head: (N, Y, C)."""
        value_UEC = _split_heads(self._attention.v_proj(value_NTC), self._attention.heads) @ self._out_UDC
        # The shares of a head sum to one: with one of the heads goes the bias.
        value_UEC[0] += self._attention.out_proj.bias
        return _rows_by_prompt(value_UEC, len(value_NTC)).to(self._dtype)

    def _key(self, key_NTC: Tensor) -> Tensor:
        # What the keys of a head have in common makes no difference to shares, only to how scores are rounded.
        key_NTD = self._attention.k_proj(key_NTC)
        key_UED = _split_heads(key_NTD - key_NTD.mean(dim=1, keepdim=True), self._attention.heads)
        return key_UED * key_UED.shape[-1] ** -0.5


# X = N * T rows of a head, prompt by prompt; Y = h * T rows of a prompt, head by head.


def _by_head(projection: nn.Linear, heads: int) -> Tensor:
    """The weight of a projection, (h, D, C)."""
    return projection.weight.unflatten(0, (heads, -1))


def _split_heads(x_NTC: Tensor, heads: int) -> Tensor:
    """(h, X, D)."""
    return x_NTC.flatten(0, 1).unflatten(-1, (heads, -1)).transpose(0, 1)


def _rows_by_prompt(x_UEC: Tensor, prompts: int) -> Tensor:
    """(N, Y, C)."""
    return x_UEC.unflatten(1, (prompts, -1)).transpose(0, 1).flatten(1, 2)


def _by_image(x_UEI: Tensor, y_UBIO: Tensor) -> Tensor:
    """(h, X, Z): one large product for each head where all prompts share an image."""
    images = y_UBIO.shape[1]
    return (x_UEI.unflatten(1, (images, -1)) @ y_UBIO).flatten(1, 2)
