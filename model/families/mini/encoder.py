"""The image encoder of `mini`: a pyramid of convolutions, ViTDet blocks, and finer features beside the embedding.

Shapes: B images, S input side in pixels, Y X grid in cells, C channels.
Source: the skips are those of SAM 2 (Ravi et al. 2024).
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskmill.model.embedding import ImageEmbedding
from maskmill.model.families.mini.config import MiniConfig
from maskmill.model.layers import LayerNorm2d
from maskmill.model.vitdet import make_blocks, make_neck


class MiniEncoder(nn.Module):
    """Normalised, padded images (B, 3, S, S) to their embeddings, with Y = X = S / patch."""

    def __init__(self, config: MiniConfig) -> None:
        super().__init__()
        # `segment_anything` reads this attribute from any encoder.
        self.img_size = config.image_size
        self.patch_embed = ConvStem(config)
        self.pos_embed = nn.Parameter(torch.zeros(1, config.grid_size, config.grid_size, config.encoder_width))
        self.blocks = make_blocks(config)
        self.neck = make_neck(config.encoder_width, config.embed_dim)
        self.skips = nn.ModuleList()
        for halving in (1, 2):
            in_width, out_width = config.encoder_width >> halving, config.embed_dim >> (halving + 1)
            self.skips.append(nn.Conv2d(in_width, out_width, kernel_size=3, padding=1))

    def forward(self, images_B3SS: Tensor) -> ImageEmbedding:
        x_BYXC, finer = self.patch_embed(images_B3SS)
        x_BYXC = x_BYXC + self.pos_embed
        for block in self.blocks:
            x_BYXC = block(x_BYXC)
        # `finer` may go further than there are skips.
        skips = tuple(skip(features) for skip, features in zip(self.skips, finer, strict=False))
        return ImageEmbedding(self.neck(x_BYXC.permute(0, 3, 1, 2)), skips)


class ConvStem(nn.Module):
    """Strided 3x3 convolutions, each halving the side and doubling the channels, down to the patch size.

    Also gives the features on the way, (B, C/2, 2Y, 2X), (B, C/4, 4Y, 4X) and so on.
    Source: Xiao et al. 2021, "Early convolutions help transformers see better".
    """

    def __init__(self, config: MiniConfig) -> None:
        super().__init__()
        halvings = config.patch_size.bit_length() - 1
        widths = [3] + [config.encoder_width >> (halvings - 1 - i) for i in range(halvings)]
        self.layers = nn.Sequential()
        for in_width, out_width in pairwise(widths):
            self.layers.append(nn.Conv2d(in_width, out_width, kernel_size=3, stride=2, padding=1))
            self.layers.append(LayerNorm2d(out_width))
            self.layers.append(nn.GELU())
        self.blocks = nn.ModuleList(
            nn.Sequential(*(ConvBlock(width) for _ in range(blocks)))
            for width, blocks in zip(widths[1:], config.stem_blocks, strict=False)
        )
        self.proj = nn.Conv2d(config.encoder_width, config.encoder_width, kernel_size=1)

    def forward(self, images_B3SS: Tensor) -> tuple[Tensor, list[Tensor]]:
        halved, x_BCYX = [], images_B3SS
        for layer in self.layers:
            x_BCYX = layer(x_BCYX)
            if isinstance(layer, nn.GELU):
                if len(halved) < len(self.blocks):
                    x_BCYX = self.blocks[len(halved)](x_BCYX)
                halved.append(x_BCYX)
        return self.proj(x_BCYX).permute(0, 2, 3, 1), halved[-2::-1]


class ConvBlock(nn.Module):
    """Two 3x3 convolutions beside a connection that skips them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = LayerNorm2d(width)
        self.conv1 = nn.Conv2d(width, width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, padding=1)

    def forward(self, x_BCYX: Tensor) -> Tensor:
        return x_BCYX + self.conv2(F.gelu(self.conv1(self.norm(x_BCYX))))
