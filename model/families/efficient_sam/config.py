"""The variants of EfficientSAM: a plain ViT as image encoder, and a mask decoder like that of Segment Anything."""

from __future__ import annotations

from dataclasses import dataclass

from maskmill.model.config import Activation, UpscalingNorm
from maskmill.model.vitdet import VitDetConfig


@dataclass(frozen=True, kw_only=True)
class EfficientSamConfig(VitDetConfig):
    """Dimensions of one variant. All blocks of the encoder attend globally.

    Source: Xiong et al. 2023 (EfficientSAM); `build_efficient_sam.py` of EfficientSAM.
    """

    family: str = "efficient_sam"
    encoder_depth: int = 12
    global_attention_blocks: tuple[int, ...] = tuple(range(12))
    relative_positions: bool = False
    # Side of the learned position table in cells. Its first row is of a class token, which has no use here.
    position_size: int = 14
    # Points of a prompt. Prompts with fewer are padded.
    max_points: int = 6
    takes_masks: bool = False
    square_input: bool = True
    decoder_activation: Activation = "gelu"
    keeps_positions: bool = True
    upscaling_norm: UpscalingNorm = "image"


VARIANTS = (
    EfficientSamConfig("efficient_sam_ti", encoder_width=192, encoder_heads=3),
    EfficientSamConfig("efficient_sam_s", encoder_width=384, encoder_heads=6),
)
