"""A fake Network without weights: a mask consists of the pixels near the click with a similar colour.

On photographs, its masks resemble those of a trained model: they have ragged outlines, holes, islands, near-duplicates
and a wide range of sizes. `oracles.published_colour_sam` is the same model with the interface of segment_anything.

Shapes: N prompts, M masks per prompt (the single mask first), h w mask side in logit pixels, S input side.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskmill.model.embedding import ImageEmbedding
from maskmill.model.families.sam1.config import SamConfig
from maskmill.model.mask_decoder import DecodedPrompts
from maskmill.model.network import Network

CONFIG = SamConfig(
    "colour", encoder_width=8, encoder_depth=1, encoder_heads=1, global_attention_blocks=(0,), image_size=256
)
# Per mask: how much the colour may differ, and how far it may be, as a fraction of the input.
COLOUR_REACH = (1.0, 0.5, 1.0, 2.0)
SPACE_REACH = (0.5, 0.1, 0.3, 1.0)


def similarity(image_13hw: Tensor, points_N2: Tensor) -> Tensor:
    """Mask logits: above zero where colour and place are near those of the click."""
    side = image_13hw.shape[-1]
    at_N2 = (points_N2 * side / CONFIG.image_size).long().clamp(0, side - 1)
    colour_N3 = image_13hw[0, :, at_N2[:, 1], at_N2[:, 0]].T
    colour_distance_Nhw = (image_13hw - colour_N3[:, :, None, None]).square().sum(1)
    grid = torch.arange(side)
    y_hw, x_hw = torch.meshgrid(grid, grid, indexing="ij")
    distance_Nhw = (x_hw - at_N2[:, 0, None, None]).square() + (y_hw - at_N2[:, 1, None, None]).square()
    colour_M = torch.tensor(COLOUR_REACH)[None, :, None, None]
    space_M = torch.tensor(SPACE_REACH)[None, :, None, None] * side
    logits = 1 - colour_distance_Nhw[:, None] / colour_M**2 - distance_Nhw[:, None] / space_M**2
    return (20 * logits).clamp(-20, 20)


def predicted_iou(logits_NMhw: Tensor) -> Tensor:
    """A score that differs between masks and can exceed 1: the share of pixels that are sure."""
    return 1.02 - (logits_NMhw.abs() < 4).float().mean((-1, -2))


class ColourSam(Network):
    """`Network` without its network."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.config = CONFIG

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def encode_images(self, images_B3SS: Tensor) -> ImageEmbedding:
        return ImageEmbedding(F.avg_pool2d(images_B3SS, CONFIG.image_size // CONFIG.mask_size))

    def decode_points(self, embedding: ImageEmbedding, points_N2: Tensor) -> DecodedPrompts:
        logits_NMhw = similarity(embedding.grid_BCYX, points_N2)
        return DecodedPrompts(predicted_iou(logits_NMhw), torch.empty(0), logits_NMhw)

    def decode_masks(self, decoded: DecodedPrompts, keep_NM: Tensor) -> Tensor:
        return decoded.image_tokens_NCYX[keep_NM]
