"""The image encoder of `mini`: a pretrained convolutional trunk, global attention and high-resolution skips.

Shapes: B images, S input side in pixels, Y X grid in cells of 16 pixels, y x a grid of half its side, C encoder width,
E embedding channels, c channels of the trunk's features or of the top-down path.
Source: Lin et al. 2017 (feature pyramids) for the top-down path; Ravi et al. 2024 (SAM 2) for the skips.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskmill.model.embedding import ImageEmbedding
from maskmill.model.families.mini.config import MiniConfig
from maskmill.model.families.mini.efficientnet_lite import FEATURE_STAGES, EfficientNetLite
from maskmill.model.layers import LayerNorm2d
from maskmill.model.vitdet import make_blocks, make_neck

TOP_DOWN_CHANNELS = 64


class MiniEncoder(nn.Module):
    """Maps normalised, padded images (B, 3, S, S) to image embeddings with Y = X = S / 16."""

    def __init__(self, config: MiniConfig) -> None:
        super().__init__()
        width, embed_dim = config.encoder_width, config.embed_dim
        c4, c8, c16, c32 = (config.trunk[i].channels for i in FEATURE_STAGES)
        self.img_size = config.image_size
        self.trunk = EfficientNetLite(config.trunk)
        self.lateral_16 = nn.Conv2d(c16, width, kernel_size=1)
        self.lateral_32 = nn.Conv2d(c32, width, kernel_size=1)
        self.norm = LayerNorm2d(width)
        self.pos_embed = nn.Parameter(torch.zeros(1, config.grid_size, config.grid_size, width))
        self.blocks = make_blocks(config)
        self.neck = make_neck(width, embed_dim)
        self.top_down = nn.ModuleList(
            [TopDown(embed_dim, c8, embed_dim // 4), TopDown(TOP_DOWN_CHANNELS, c4, embed_dim // 8)]
        )

    def forward(self, images_B3SS: Tensor) -> ImageEmbedding:
        *finer, x16_BcYX, x32_Bcyx = self.trunk(images_B3SS)
        x_BCYX = self.lateral_16(x16_BcYX) + _double(self.lateral_32(x32_Bcyx))
        x_BYXC = self.norm(x_BCYX).permute(0, 2, 3, 1) + self.pos_embed
        for block in self.blocks:
            x_BYXC = block(x_BYXC)
        grid_BCYX = self.neck(x_BYXC.permute(0, 3, 1, 2))
        coarse, skips = grid_BCYX, []
        for step, features in zip(self.top_down, reversed(finer), strict=True):
            coarse, skip = step(coarse, features)
            skips.append(skip)
        return ImageEmbedding(grid_BCYX, tuple(skips))


class TopDown(nn.Module):
    """Top-down step of a feature pyramid: merges coarse features with trunk features of twice the resolution.

    Returns the merged features and a skip connection, both at the higher resolution.
    """

    def __init__(self, coarse_channels: int, fine_channels: int, skip_channels: int) -> None:
        super().__init__()
        width = TOP_DOWN_CHANNELS
        self.coarse = nn.Conv2d(coarse_channels, width, kernel_size=1)
        self.lateral = nn.Conv2d(fine_channels, width, kernel_size=1)
        self.norm = LayerNorm2d(width)
        self.conv = nn.Conv2d(width, width, kernel_size=3, padding=1)
        self.skip = nn.Conv2d(width, skip_channels, kernel_size=1)

    def forward(self, coarse_Bcyx: Tensor, fine_BcYX: Tensor) -> tuple[Tensor, Tensor]:
        x_BcYX = self.norm(_double(self.coarse(coarse_Bcyx)) + self.lateral(fine_BcYX))
        x_BcYX = x_BcYX + F.gelu(self.conv(x_BcYX))
        return x_BcYX, self.skip(x_BcYX)


def _double(x_BCYX: Tensor) -> Tensor:
    """Doubles the resolution by bilinear interpolation."""
    return F.interpolate(x_BCYX, scale_factor=2, mode="bilinear")
