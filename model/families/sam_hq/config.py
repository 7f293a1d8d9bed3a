"""The variants of SAM-HQ: Segment Anything and MobileSAM with a mask decoder that adds details."""

from __future__ import annotations

from dataclasses import dataclass

from maskmill.model.config import NetworkConfig
from maskmill.model.families.mobile_sam.config import MobileSamConfig
from maskmill.model.vitdet import VitDetConfig


@dataclass(frozen=True, kw_only=True)
class SamHqConfig(NetworkConfig):
    """Dimensions of the mask decoder of one variant.

    Source: Ke et al. 2023 (SAM-HQ); `build_sam.py` of segment-anything-hq.
    """

    family: str = "sam_hq"
    early_width: int  # channels of the early features of the encoder
    # Whether a mask is the high-quality token's alone, not its sum with a mask of Segment Anything.
    hq_token_only: bool = False
    best_candidate_only: bool = True


@dataclass(frozen=True, kw_only=True)
class SamHqVitConfig(SamHqConfig, VitDetConfig):
    """A variant with the image encoder of Segment Anything. Its first global attention block gives early features."""


@dataclass(frozen=True, kw_only=True)
class SamHqTinyVitConfig(SamHqConfig, MobileSamConfig):
    """A variant with the image encoder of MobileSAM. Its second stage gives early features."""


VARIANTS = (
    SamHqVitConfig(
        "hq_vit_b",
        encoder_width=768,
        encoder_depth=12,
        encoder_heads=12,
        global_attention_blocks=(2, 5, 8, 11),
        early_width=768,
    ),
    SamHqVitConfig(
        "hq_vit_l",
        encoder_width=1024,
        encoder_depth=24,
        encoder_heads=16,
        global_attention_blocks=(5, 11, 17, 23),
        early_width=1024,
    ),
    SamHqVitConfig(
        "hq_vit_h",
        encoder_width=1280,
        encoder_depth=32,
        encoder_heads=16,
        global_attention_blocks=(7, 15, 23, 31),
        early_width=1280,
    ),
    SamHqTinyVitConfig("hq_vit_tiny", early_width=160),
)
