"""The prompt encoder: encodes points and boxes as tokens, and masks as a dense embedding.

Shapes: N prompts, P points per prompt, T prompt tokens, C channels, Y X embedding grid, h w mask logits.
Source: Kirillov et al. 2023, Appendix A; `modeling/prompt_encoder.py` of segment-anything.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from maskmill.model.config import NetworkConfig
from maskmill.model.layers import LayerNorm2d

PADDING_LABEL = -1  # the published label of a point that is ignored; pads prompts without a box


class PromptEncoder(nn.Module):
    """Encodes any combination of points, a box and a mask per prompt."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.image_size = config.image_size
        self.grid_size = config.grid_size
        self.pads_boxes = config.pads_boxes
        self.pe_layer = RandomFourierPositions(config.embed_dim)
        # In order: background point, foreground point, top-left box corner, bottom-right box corner.
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, config.embed_dim) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, config.embed_dim)
        channels = config.mask_prompt_channels
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, channels // 4, kernel_size=2, stride=2),
            LayerNorm2d(channels // 4),
            nn.GELU(),
            nn.Conv2d(channels // 4, channels, kernel_size=2, stride=2),
            LayerNorm2d(channels),
            nn.GELU(),
            nn.Conv2d(channels, config.embed_dim, kernel_size=1),
        )
        self.no_mask_embed = nn.Embedding(1, config.embed_dim)

    def forward(
        self,
        points_NP2: Tensor | None = None,
        labels_NP: Tensor | None = None,
        boxes_N4: Tensor | None = None,
        masks_N1hw: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Encodes prompts in input pixels.

        Args:
            points_NP2: x, y of each point.
            labels_NP: 1 foreground, 0 background, -1 padding.
            boxes_N4: x0, y0, x1, y1.
            masks_N1hw: mask logits, 4 x 4 per embedding cell.

        Returns:
            sparse (N, T, C) and dense (N, C, Y, X); dense is (1, C, 1, 1) without a mask prompt.
        """
        tokens = []
        if points_NP2 is not None and labels_NP is not None:
            tokens.append(self._embed_points(points_NP2, labels_NP))
        if boxes_N4 is not None:
            tokens.append(self._embed_boxes(boxes_N4))
        if tokens and (boxes_N4 is None or self.pads_boxes):
            tokens.append(self.not_a_point_embed.weight.expand(len(tokens[0]), 1, -1))
        if tokens:
            sparse_NTC = torch.cat(tokens, dim=1)
        else:
            count = 1 if masks_N1hw is None else masks_N1hw.shape[0]
            sparse_NTC = self.no_mask_embed.weight.new_zeros(count, 0, self.no_mask_embed.embedding_dim)
        if masks_N1hw is not None:
            return sparse_NTC, self.mask_downscaling(masks_N1hw)
        return sparse_NTC, self.no_mask_embed.weight[:, :, None, None]

    def grid_positions(self) -> Tensor:
        """Positional encoding of the embedding cells, (1, C, Y, X)."""
        return self.pe_layer.of_grid(self.grid_size)

    def _positions(self, xy: Tensor) -> Tensor:
        # Pixel centres as a fraction of the input side.
        return self.pe_layer((xy + 0.5) / self.image_size)

    def _embed_points(self, points_NP2: Tensor, labels_NP: Tensor) -> Tensor:
        tokens_NPC = self._positions(points_NP2)
        label_NP1 = labels_NP[..., None]
        # A padding point has no position, only its own embedding.
        tokens_NPC = torch.where(label_NP1 == PADDING_LABEL, self.not_a_point_embed.weight, tokens_NPC)
        tokens_NPC = tokens_NPC + (label_NP1 == 0) * self._point_embedding(0)
        return tokens_NPC + (label_NP1 == 1) * self._point_embedding(1)

    def _embed_boxes(self, boxes_N4: Tensor) -> Tensor:
        corners_N2C = self._positions(boxes_N4.reshape(-1, 2, 2))
        return corners_N2C + torch.cat([self._point_embedding(2), self._point_embedding(3)])

    def _point_embedding(self, kind: int) -> Tensor:
        return self.point_embeddings.get_parameter(f"{kind}.weight")


class RandomFourierPositions(nn.Module):
    """Encodes coordinates in [0, 1] as sines and cosines of random frequencies (Tancik et al. 2020)."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, dim // 2))

    def of_grid(self, side: int) -> Tensor:
        """The encoding of the centres of side x side cells: (1, C, Y, X)."""
        centres = (torch.arange(side, device=self.positional_encoding_gaussian_matrix.device) + 0.5) / side
        y_YX, x_YX = torch.meshgrid(centres, centres, indexing="ij")
        return self(torch.stack([x_YX, y_YX], dim=-1)).permute(2, 0, 1)[None]

    def forward(self, xy: Tensor) -> Tensor:
        # Computed in float32: phases reach hundreds of radians, which bf16 cannot represent precisely.
        with torch.autocast(xy.device.type, enabled=False):
            matrix = self.positional_encoding_gaussian_matrix
            phase = 2 * math.pi * ((2 * xy.to(matrix.dtype) - 1) @ matrix)
            return torch.cat([phase.sin(), phase.cos()], dim=-1)
