"""Segment Anything, composed of its three parts. The network stores no image and no prompt.

Shapes: B images, N prompts, P points per prompt, T prompt tokens, M masks per prompt (the single mask first), K chosen
masks, C channels, Y X embedding grid, S input side, h w low-resolution logits. Coordinates are input pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from maskmill.model.config import SamConfig
from maskmill.model.image_encoder import ImageEmbedding, ImageEncoder
from maskmill.model.lite_encoder import LiteEncoder
from maskmill.model.mask_decoder import DecodedPrompts, MaskDecoder
from maskmill.model.prompt_encoder import PromptEncoder


class Sam(nn.Module):
    """Image encoder, prompt encoder and mask decoder of one variant."""

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        self.config = config
        self.image_encoder = LiteEncoder(config) if config.trunk else ImageEncoder(config)
        self.prompt_encoder = PromptEncoder(config)
        self.mask_decoder = MaskDecoder(config)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.image_encoder.pos_embed.device

    def screen(self) -> Sam | None:
        """A faster network for the same embeddings with approximate results, or None. See `filters.screening`."""
        return None

    def encode_images(self, images_B3SS: Tensor) -> ImageEmbedding:
        """The embeddings of images from `preprocess`."""
        return self.image_encoder(images_B3SS)

    def decode_prompts(
        self,
        embedding: ImageEmbedding,
        points_NP2: Tensor | None = None,
        labels_NP: Tensor | None = None,
        boxes_N4: Tensor | None = None,
        masks_N1hw: Tensor | None = None,
    ) -> DecodedPrompts:
        """Predicted IoUs, and the input of `decode_masks`, for any combination of prompts.

        `embedding` holds one embedding per prompt, or one that all prompts share.
        """
        sparse_NTC, dense_NCYX = self.prompt_encoder(points_NP2, labels_NP, boxes_N4, masks_N1hw)
        return self.mask_decoder.decode_prompts(embedding, self.grid_positions(), sparse_NTC, dense_NCYX)

    def grid_positions(self) -> Tensor:
        """Positional encoding of the embedding cells, (1, C, Y, X)."""
        return self.prompt_encoder.grid_positions()

    def decode_points(self, embedding: ImageEmbedding, points_N2: Tensor) -> DecodedPrompts:
        """`decode_prompts` for N prompts on one image, each a single foreground point."""
        points_N12 = points_N2[:, None]
        labels_N1 = torch.ones(points_N12.shape[:2], dtype=torch.int64, device=points_N2.device)
        return self.decode_prompts(embedding, points_N12, labels_N1)

    def decode_masks(self, decoded: DecodedPrompts, keep_NM: Tensor) -> Tensor:
        """Mask logits (K, h, w), 4 x 4 per embedding cell, of the masks for which `keep_NM` is true.

        `keep_NM` may be on the CPU.
        """
        return self.mask_decoder.decode_masks(decoded, keep_NM)
