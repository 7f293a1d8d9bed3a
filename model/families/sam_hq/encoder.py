"""The image encoders of SAM-HQ: those of Segment Anything and MobileSAM, which also return early features.

Shapes: B images, S input side in pixels, Y X grid in cells, C channels.
Source: Ke et al. 2023 (SAM-HQ); `modeling/image_encoder.py` and `modeling/tiny_vit_sam.py` of segment-anything-hq.
"""

from __future__ import annotations

from torch import Tensor

from maskmill.model.embedding import ImageEmbedding
from maskmill.model.families.mobile_sam.encoder import TinyVit
from maskmill.model.families.sam1.encoder import ImageEncoder
from maskmill.model.families.sam_hq.config import SamHqVitConfig


class HqImageEncoder(ImageEncoder):
    """Maps images to embeddings with one skip (B, C, Y, X), the output of the first global attention block."""

    def __init__(self, config: SamHqVitConfig) -> None:
        super().__init__(config)
        self._early_block = config.global_attention_blocks[0]

    def forward(self, images_B3SS: Tensor) -> ImageEmbedding:
        x_BYXC = early_BYXC = self.patch_embed(images_B3SS) + self.pos_embed
        for i, block in enumerate(self.blocks):
            x_BYXC = block(x_BYXC)
            if i == self._early_block:
                early_BYXC = x_BYXC
        return ImageEmbedding(self.neck(x_BYXC.permute(0, 3, 1, 2)), (early_BYXC.permute(0, 3, 1, 2),))


class HqTinyVit(TinyVit):
    """Maps images to embeddings with one skip (B, C, Y, X), the output of the second stage."""

    def forward(self, images_B3SS: Tensor) -> ImageEmbedding:
        x_BCYX = self.patch_embed(images_B3SS)
        outputs = []
        for stage in self.layers:
            x_BCYX = stage(x_BCYX)
            outputs.append(x_BCYX)
        return ImageEmbedding(self.neck(x_BCYX), (outputs[1],))
