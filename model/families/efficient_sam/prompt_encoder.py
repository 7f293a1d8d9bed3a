"""The prompt encoder of EfficientSAM: points and the corners of a box as a fixed number of tokens.

Shapes: N prompts, P points per prompt, T tokens per prompt, C channels, Y X embedding grid, h w mask logits.
Source: `efficient_sam.py` and `efficient_sam_decoder.py` of EfficientSAM.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskmill.model.errors import PromptError
from maskmill.model.families.efficient_sam.config import EfficientSamConfig
from maskmill.model.prompt_encoder import PADDING_LABEL, RandomFourierPositions

TOP_LEFT, BOTTOM_RIGHT = 2, 3  # labels of the corners of a box


class PointEncoder(nn.Module):
    """Encodes points and a box per prompt. There are no mask prompts."""

    def __init__(self, config: EfficientSamConfig) -> None:
        super().__init__()
        self.image_size, self.grid_size, self.max_points = config.image_size, config.grid_size, config.max_points
        self.name = config.name
        self.pe_layer = RandomFourierPositions(config.embed_dim)
        self.invalid_points = nn.Embedding(1, config.embed_dim)
        self.point_embedding = nn.Embedding(1, config.embed_dim)
        self.bbox_top_left_embeddings = nn.Embedding(1, config.embed_dim)
        self.bbox_bottom_right_embeddings = nn.Embedding(1, config.embed_dim)

    def forward(
        self,
        points_NP2: Tensor | None = None,
        labels_NP: Tensor | None = None,
        boxes_N4: Tensor | None = None,
        masks_N1hw: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Encodes prompts in input pixels, see `prompt_encoder.PromptEncoder`.

        A background point (label 0) has its position only, as published: the weights were trained without such points.

        Raises:
            PromptError: there is a mask, or there are too many points. A box counts as two.
        """
        if masks_N1hw is not None:
            raise PromptError(f"{self.name} takes no masks as prompts; give points or a box")
        points, labels = [], []
        if points_NP2 is not None and labels_NP is not None:
            points.append(points_NP2)
            labels.append(labels_NP)
        if boxes_N4 is not None:
            points.append(boxes_N4.unflatten(1, (2, 2)))
            labels.append(boxes_N4.new_tensor([TOP_LEFT, BOTTOM_RIGHT]).expand(len(boxes_N4), 2))
        points_NT2, labels_NT = torch.cat(points, dim=1), torch.cat(labels, dim=1)
        missing = self.max_points - labels_NT.shape[1]
        if missing < 0:
            raise PromptError(
                f"{self.name} takes {self.max_points} points at most, where a box counts as two; there are "
                f"{labels_NT.shape[1]}"
            )
        points_NT2 = F.pad(points_NT2, (0, 0, 0, missing), value=-1.0)
        labels_NT1 = F.pad(labels_NT, (0, missing), value=PADDING_LABEL)[..., None]
        tokens_NTC = self.pe_layer((points_NT2 + 0.5) / self.image_size)
        for label, embedding in (
            (PADDING_LABEL, self.invalid_points),
            (1, self.point_embedding),
            (TOP_LEFT, self.bbox_top_left_embeddings),
            (BOTTOM_RIGHT, self.bbox_bottom_right_embeddings),
        ):
            tokens_NTC = tokens_NTC + (labels_NT1 == label) * embedding.weight
        return tokens_NTC, tokens_NTC.new_zeros(1, tokens_NTC.shape[-1], 1, 1)

    def grid_positions(self) -> Tensor:
        """Positional encoding of the embedding cells, (1, C, Y, X)."""
        return self.pe_layer.of_grid(self.grid_size)
