"""The image encoder of Segment Anything: a ViTDet backbone and the neck that makes the image embedding.

Shapes: B images, S input side in pixels, Y X grid in cells, C channels.
Source: Li et al. 2022 (ViTDet); `modeling/image_encoder.py` of segment-anything.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from maskmill.model.embedding import ImageEmbedding
from maskmill.model.vitdet import VitDetConfig, make_blocks, make_neck


class ImageEncoder(nn.Module):
    """Normalised, padded images (B, 3, S, S) to their embeddings, with Y = X = S / patch."""

    def __init__(self, config: VitDetConfig) -> None:
        super().__init__()
        # `segment_anything` reads this attribute from any encoder.
        self.img_size = config.image_size
        self.patch_embed = PatchEmbed(config)
        self.pos_embed = nn.Parameter(torch.zeros(1, config.grid_size, config.grid_size, config.encoder_width))
        self.blocks = make_blocks(config)
        self.neck = make_neck(config.encoder_width, config.embed_dim)

    def forward(self, images_B3SS: Tensor) -> ImageEmbedding:
        x_BYXC = self.patch_embed(images_B3SS) + self.pos_embed
        for block in self.blocks:
            x_BYXC = block(x_BYXC)
        return ImageEmbedding(self.neck(x_BYXC.permute(0, 3, 1, 2)))


class PatchEmbed(nn.Module):
    """One convolution as large as its stride."""

    def __init__(self, config: VitDetConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.encoder_width, kernel_size=config.patch_size, stride=config.patch_size)

    def forward(self, images_B3SS: Tensor) -> Tensor:
        """Returns (B, Y, X, C)."""
        return self.proj(images_B3SS).permute(0, 2, 3, 1)
