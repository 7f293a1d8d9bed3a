"""The two-way transformer with its image-side projections moved to the tokens: the same function, a third of the work.

A prompt has seven tokens, the image thousands. Where the published formula projects every image token, this one
projects the prompt's tokens instead: (W_q x) . (W_k y) = (W_k^T W_q x) . y, and value and output projections fold
alike. Of the biases, the key's cancels in the softmax over keys, the query's becomes a number per token, and those of
value and output pass through unchanged, because what attention hands out sums to one.

Tokens are computed in float32, image tokens in a dtype of choice.

Shapes: N prompts, T tokens of a prompt, L image tokens, C channels, h heads, D features per head. Image tokens have a
leading 1 instead of N where all prompts still share them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.transformer import CrossAttention, TwoWayBlock, TwoWayTransformer


class TokenSideTransformer(nn.Module):
    """Stands in for a `TwoWayTransformer` at inference, with that one's weights as they are now."""

    def __init__(self, transformer: TwoWayTransformer, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype
        self._transformer = transformer
        self._blocks = [_Block(block, dtype) for block in transformer.layers if isinstance(block, TwoWayBlock)]
        self._tokens_to_image = _TokensToImage(transformer.final_attn_token_to_image, dtype)

    def forward(self, tokens_NTC: Tensor, image_NLC: Tensor, positions_1LC: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the updated tokens (N, T, C) in float32 and image tokens (N, L, C) in the chosen dtype."""
        image_NLC, positions_1LC = image_NLC.to(self._dtype), positions_1LC.to(self._dtype)
        x_NTC = tokens_NTC
        for block in self._blocks:
            x_NTC, image_NLC = block(x_NTC, image_NLC, tokens_NTC, positions_1LC)
        attended_NTC = self._tokens_to_image(x_NTC + tokens_NTC, image_NLC + positions_1LC, image_NLC)
        return self._transformer.norm_final_attn(x_NTC + attended_NTC), image_NLC


class _Block:
    """`TwoWayBlock`."""

    def __init__(self, block: TwoWayBlock, dtype: torch.dtype) -> None:
        self._block = block
        self._tokens_to_image = _TokensToImage(block.cross_attn_token_to_image, dtype)
        self._image_to_tokens = _ImageToTokens(block.cross_attn_image_to_token, dtype)
        self._norm4 = block.norm4.weight.to(dtype), block.norm4.bias.to(dtype)

    def __call__(
        self, x_NTC: Tensor, image_NLC: Tensor, prompts_NTC: Tensor, positions_1LC: Tensor
    ) -> tuple[Tensor, Tensor]:
        block = self._block
        x_NTC = block.attend_to_tokens(x_NTC, prompts_NTC)
        placed_NLC = image_NLC + positions_1LC
        x_NTC = block.norm2(x_NTC + self._tokens_to_image(x_NTC + prompts_NTC, placed_NLC, image_NLC))
        x_NTC = block.norm3(x_NTC + block.mlp(x_NTC))
        image_NLC = self._image_to_tokens(image_NLC, placed_NLC, x_NTC + prompts_NTC, x_NTC)
        return x_NTC, F.layer_norm(image_NLC, image_NLC.shape[-1:], *self._norm4, block.norm4.eps)


class _TokensToImage:
    """`CrossAttention` of tokens that ask the image."""

    def __init__(self, attention: CrossAttention, dtype: torch.dtype) -> None:
        self._attention, self._dtype = attention, dtype
        self._key_hDC = _by_head(attention.k_proj, attention.heads)
        self._value_hCD = _by_head(attention.v_proj, attention.heads).transpose(1, 2).contiguous()

    def __call__(self, query_NTC: Tensor, key_NLC: Tensor, value_NLC: Tensor) -> Tensor:
        attention, (N, T, _) = self._attention, query_NTC.shape
        query_hXD = _split_heads(attention.q_proj(query_NTC), attention.heads)
        # As long as an image token: these are its keys without projection.
        query_NYC = _rows_by_prompt((query_hXD @ self._key_hDC) * query_hXD.shape[-1] ** -0.5, N).to(self._dtype)
        score_NYL = _multiply(query_NYC, key_NLC.transpose(1, 2))
        seen_NYC = _multiply(score_NYL.softmax(dim=-1), value_NLC)
        seen_hXC = seen_NYC.float().unflatten(1, (attention.heads, T)).transpose(0, 1).flatten(1, 2)
        x_NTD = (seen_hXC @ self._value_hCD).transpose(0, 1).reshape(N, T, -1)
        return attention.out_proj(x_NTD + attention.v_proj.bias)


class _ImageToTokens:
    """`CrossAttention` of an image that asks tokens, with the residual sum."""

    def __init__(self, attention: CrossAttention, dtype: torch.dtype) -> None:
        self._attention, self._dtype = attention, dtype
        self._query_hDC = _by_head(attention.q_proj, attention.heads)
        self._query_bias_hD1 = attention.q_proj.bias.view(attention.heads, -1, 1)
        self._out_hDC = attention.out_proj.weight.T.unflatten(0, (attention.heads, -1)).contiguous()

    def __call__(self, image_NLC: Tensor, query_NLC: Tensor, key_NTC: Tensor, value_NTC: Tensor) -> Tensor:
        attention, (N, T, _) = self._attention, key_NTC.shape
        key_hXD = _split_heads(attention.k_proj(key_NTC), attention.heads)
        key_hXD = key_hXD * key_hXD.shape[-1] ** -0.5
        key_NYC = _rows_by_prompt(key_hXD @ self._query_hDC, N).to(self._dtype)
        bias_NY1 = _rows_by_prompt(key_hXD @ self._query_bias_hD1, N).to(self._dtype)
        value_hNTC = (_split_heads(attention.v_proj(value_NTC), attention.heads) @ self._out_hDC).unflatten(1, (N, T))
        # What each head hands out sums to one: with one of them goes the bias.
        value_hNTC[0] += attention.out_proj.bias
        value_NYC = value_hNTC.transpose(0, 1).flatten(1, 2).to(self._dtype)
        score_NYL = _multiply(key_NYC, query_NLC.transpose(1, 2)) + bias_NY1
        share_NYL = score_NYL.unflatten(1, (attention.heads, T)).softmax(dim=2).flatten(1, 2)
        return torch.baddbmm(image_NLC, share_NYL.transpose(1, 2), value_NYC)


# X = N * T rows of a head, prompt by prompt; Y = h * T rows of a prompt, head by head.


def _by_head(projection: nn.Linear, heads: int) -> Tensor:
    """The weight of a projection, (h, D, C)."""
    return projection.weight.unflatten(0, (heads, -1))


def _split_heads(x_NTC: Tensor, heads: int) -> Tensor:
    """(h, X, D)."""
    return x_NTC.flatten(0, 1).unflatten(-1, (heads, -1)).transpose(0, 1)


def _rows_by_prompt(x_hXC: Tensor, prompts: int) -> Tensor:
    """(N, Y, C)."""
    return x_hXC.unflatten(1, (prompts, -1)).transpose(0, 1).flatten(1, 2)


def _multiply(x_NYK: Tensor, y_NKZ: Tensor) -> Tensor:
    """(N, Y, Z): one large product where all prompts share `y`."""
    if len(y_NKZ) == 1:
        return (x_NYK.flatten(0, 1) @ y_NKZ[0]).unflatten(0, x_NYK.shape[:2])
    return x_NYK @ y_NKZ
