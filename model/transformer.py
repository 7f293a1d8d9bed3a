"""The two-way transformer: cross-attention between prompt tokens and image tokens, in both directions.

Shapes: N prompts, T prompt tokens, L image tokens, C channels, U heads, D features per head.
The leading size of image tokens is 1 instead of N if all prompts share them. Operations on shared tokens then run once,
and their results are broadcast.
Source: `modeling/transformer.py` of segment-anything.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from maskmill.model.config import NetworkConfig
from maskmill.model.layers import MLPBlock


class TwoWayTransformer(nn.Module):
    """Updates prompt tokens, then image tokens, in each of `decoder_depth` blocks."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayBlock(config, add_positions_first=i > 0) for i in range(config.decoder_depth))
        self.final_attn_token_to_image = _cross_attention(config)
        self.norm_final_attn = nn.LayerNorm(config.embed_dim)

    def forward(self, tokens_NTC: Tensor, image_NLC: Tensor, positions_1LC: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the updated tokens (N, T, C) and image tokens (N, L, C)."""
        x_NTC = prompts_NTC = tokens_NTC
        for layer in self.layers:
            x_NTC, image_NLC = layer(x_NTC, image_NLC, prompts_NTC, positions_1LC)
        attended_NTC = self.final_attn_token_to_image(x_NTC + prompts_NTC, image_NLC + positions_1LC, image_NLC)
        return self.norm_final_attn(x_NTC + attended_NTC), image_NLC


class TwoWayBlock(nn.Module):
    """Self-attention of tokens, attention from tokens to image, MLP on tokens, attention from image to tokens."""

    def __init__(self, config: NetworkConfig, add_positions_first: bool) -> None:
        super().__init__()
        self.add_positions_first = add_positions_first
        self.keeps_positions = config.keeps_positions
        self.self_attn = CrossAttention(config.embed_dim, config.decoder_heads, downsample=1)
        self.norm1 = nn.LayerNorm(config.embed_dim)
        self.cross_attn_token_to_image = _cross_attention(config)
        self.norm2 = nn.LayerNorm(config.embed_dim)
        self.mlp = MLPBlock(config.embed_dim, config.decoder_mlp_dim, getattr(F, config.decoder_activation))
        self.norm3 = nn.LayerNorm(config.embed_dim)
        self.norm4 = nn.LayerNorm(config.embed_dim)
        self.cross_attn_image_to_token = _cross_attention(config)

    def forward(
        self, x_NTC: Tensor, image_NLC: Tensor, prompts_NTC: Tensor, positions_1LC: Tensor
    ) -> tuple[Tensor, Tensor]:
        x_NTC = self.attend_to_tokens(x_NTC, prompts_NTC)
        attended_NTC = self.cross_attn_token_to_image(x_NTC + prompts_NTC, image_NLC + positions_1LC, image_NLC)
        x_NTC = self.norm2(x_NTC + attended_NTC)
        x_NTC = self.norm3(x_NTC + self.mlp(x_NTC))
        attended_NLC = self.cross_attn_image_to_token(image_NLC + positions_1LC, x_NTC + prompts_NTC, x_NTC)
        return x_NTC, self.norm4(image_NLC + attended_NLC)

    def attend_to_tokens(self, x_NTC: Tensor, prompts_NTC: Tensor) -> Tensor:
        if self.keeps_positions:
            x_NTC = x_NTC + prompts_NTC if self.add_positions_first else x_NTC
            return self.norm1(x_NTC + self.self_attn(x_NTC, x_NTC, x_NTC))
        if self.add_positions_first:
            query_NTC = x_NTC + prompts_NTC
            return self.norm1(x_NTC + self.self_attn(query_NTC, query_NTC, x_NTC))
        # In the first block the tokens are the prompt tokens themselves, so they are not added.
        return self.norm1(self.self_attn(x_NTC, x_NTC, x_NTC))


class CrossAttention(nn.Module):
    """Multi-head attention with an inner width of `dim // downsample`."""

    def __init__(self, dim: int, heads: int, downsample: int) -> None:
        super().__init__()
        self.heads = heads
        inner_dim = dim // downsample
        self.q_proj = nn.Linear(dim, inner_dim)
        self.k_proj = nn.Linear(dim, inner_dim)
        self.v_proj = nn.Linear(dim, inner_dim)
        self.out_proj = nn.Linear(inner_dim, dim)

    def forward(self, query_NTC: Tensor, key_NLC: Tensor, value_NLC: Tensor) -> Tensor:
        q_NUTD = self._split_heads(self.q_proj(query_NTC))
        k_NULD = self._split_heads(self.k_proj(key_NLC))
        v_NULD = self._split_heads(self.v_proj(value_NLC))
        score_NUTL = (q_NUTD @ k_NULD.transpose(-1, -2)) / q_NUTD.shape[-1] ** 0.5
        x_NUTD = score_NUTL.softmax(dim=-1) @ v_NULD
        return self.out_proj(x_NUTD.transpose(1, 2).flatten(2))

    def _split_heads(self, x_NTC: Tensor) -> Tensor:
        return x_NTC.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _cross_attention(config: NetworkConfig) -> CrossAttention:
    return CrossAttention(config.embed_dim, config.decoder_heads, config.decoder_attention_downsample)
