"""The image encoder of EfficientSAM: a plain vision transformer and the neck of Segment Anything.

Shapes: B images, S input side in pixels, Y X grid in cells, C channels, y x cells of the position table.
Source: Xiong et al. 2023 (EfficientSAM); `efficient_sam_encoder.py` of EfficientSAM.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskmill.model.embedding import ImageEmbedding
from maskmill.model.families.efficient_sam.config import EfficientSamConfig
from maskmill.model.families.sam1.encoder import PatchEmbed
from maskmill.model.vitdet import make_blocks, make_neck


class PlainVit(nn.Module):
    """Maps normalised images (B, 3, S, S) to their embeddings, with Y = X = S / 16."""

    def __init__(self, config: EfficientSamConfig) -> None:
        super().__init__()
        # `segment_anything` reads this attribute from any encoder.
        self.img_size = config.image_size
        self.patch_embed = PatchEmbed(config)
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.position_size**2, config.encoder_width))
        self.blocks = make_blocks(config)
        self.neck = make_neck(config.encoder_width, config.embed_dim)

    def forward(self, images_B3SS: Tensor) -> ImageEmbedding:
        x_BYXC = self.patch_embed(images_B3SS)
        x_BYXC = x_BYXC + self._positions(x_BYXC.shape[1:3])
        for block in self.blocks:
            x_BYXC = block(x_BYXC)
        return ImageEmbedding(self.neck(x_BYXC.permute(0, 3, 1, 2)))

    def _positions(self, grid: torch.Size) -> Tensor:
        """The position table, enlarged to the grid: (1, Y, X, C)."""
        side = round((self.pos_embed.shape[1] - 1) ** 0.5)
        table_1Cyx = self.pos_embed[:, 1:].mT.unflatten(2, (side, side))
        return F.interpolate(table_1Cyx, grid, mode="bicubic").permute(0, 2, 3, 1)
