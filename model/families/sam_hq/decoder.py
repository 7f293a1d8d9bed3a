"""The mask decoder of SAM-HQ. A high-quality token predicts logits that are added to those of every mask.

Shapes: B images (1 if all prompts share one, else N), N prompts, Z prompts with at least one chosen mask, M masks per
prompt, C channels, Y X embedding grid, h w = 4Y 4X mask logits.
Source: Ke et al. 2023 (SAM-HQ); `modeling/mask_decoder_hq.py` of segment-anything-hq.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from maskmill.model.embedding import ImageEmbedding
from maskmill.model.families.sam_hq.config import SamHqConfig
from maskmill.model.layers import MLP, LayerNorm2d
from maskmill.model.mask_decoder import DecodedPrompts, MaskDecoder


class HqMaskDecoder(MaskDecoder):
    """A `MaskDecoder` with the high-quality token as its last output token."""

    def __init__(self, config: SamHqConfig) -> None:
        super().__init__(config)
        dim = config.embed_dim
        self.hq_token_only = config.hq_token_only
        self.hf_token = nn.Embedding(1, dim)
        self.hf_mlp = MLP(dim, dim, dim // 8, depth=3)
        self.compress_vit_feat = _upscaler(config.early_width, dim, dim // 8)
        self.embedding_encoder = _upscaler(dim, dim // 4, dim // 8)
        self.embedding_maskfeature = nn.Sequential(
            nn.Conv2d(dim // 8, dim // 4, kernel_size=3, padding=1),
            LayerNorm2d(dim // 4),
            nn.GELU(),
            nn.Conv2d(dim // 4, dim // 8, kernel_size=3, padding=1),
        )

    def output_tokens(self) -> list[Tensor]:
        return [*super().output_tokens(), self.hf_token.weight]

    def read_output_tokens(
        self, tokens_NTC: Tensor, image_tokens_NCYX: Tensor, skips: tuple[Tensor, ...]
    ) -> DecodedPrompts:
        decoded = super().read_output_tokens(tokens_NTC, image_tokens_NCYX, skips)
        return replace(decoded, mask_tokens_NMC=tokens_NTC[:, 1 : 2 + self.num_masks])

    def decode_prompts(
        self, embedding: ImageEmbedding, positions_1CYX: Tensor, sparse_NTC: Tensor, dense_NCYX: Tensor
    ) -> DecodedPrompts:
        """See `MaskDecoder`. The only skip of the result are the features (B, C, h, w) of `image_features`."""
        decoded = super().decode_prompts(embedding, positions_1CYX, sparse_NTC, dense_NCYX)
        return replace(decoded, skips=(self.image_features(embedding),))

    def image_features(self, embedding: ImageEmbedding) -> Tensor:
        """Features (B, C, h, w) of the image, from its embedding and the early features of the encoder."""
        (early_BCYX,) = embedding.skips
        return self.embedding_encoder(embedding.grid_BCYX) + self.compress_vit_feat(early_BCYX)

    def _upscale(self, image_tokens_ZCYX: Tensor, skips: Sequence[Tensor]) -> Tensor:
        return super()._upscale(image_tokens_ZCYX, [])

    def _logits(self, upscaled_ZChw: Tensor, mask_tokens_ZMC: Tensor, skips: Sequence[Tensor]) -> Tensor:
        logits_ZMhw = super()._logits(upscaled_ZChw, mask_tokens_ZMC, skips)
        (features_BChw,) = skips
        details_ZChw = self.embedding_maskfeature(upscaled_ZChw) + features_BChw
        hq_Zhw = torch.einsum("zc,zchw->zhw", self.hf_mlp(mask_tokens_ZMC[:, -1]), details_ZChw)
        return hq_Zhw[:, None] + (torch.zeros_like(logits_ZMhw) if self.hq_token_only else logits_ZMhw)


def _upscaler(width: int, hidden: int, out: int) -> nn.Sequential:
    """Maps (B, C, Y, X) to (B, C, 4Y, 4X)."""
    return nn.Sequential(
        nn.ConvTranspose2d(width, hidden, kernel_size=2, stride=2),
        LayerNorm2d(hidden),
        nn.GELU(),
        nn.ConvTranspose2d(hidden, out, kernel_size=2, stride=2),
    )
