"""The variants of SAM-HQ: Segment Anything and MobileSAM with a mask decoder that adds details."""

from __future__ import annotations

from dataclasses import dataclass

from maskmill.model.config import NetworkConfig
from maskmill.model.families.mobile_sam.config import MobileSamConfig
from maskmill.model.families.sam1.config import VARIANTS as SAM_VARIANTS
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
    *(
        SamHqVitConfig(
            f"hq_{sam.name}",
            encoder_width=sam.encoder_width,
            encoder_depth=sam.encoder_depth,
            encoder_heads=sam.encoder_heads,
            global_attention_blocks=sam.global_attention_blocks,
            early_width=sam.encoder_width,
        )
        for sam in SAM_VARIANTS
    ),
    SamHqTinyVitConfig("hq_vit_tiny", early_width=160),
)
