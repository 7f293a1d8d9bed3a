"""The variants of Segment Anything (2023)."""

from __future__ import annotations

from dataclasses import dataclass

from maskmill.model.vitdet import VitDetConfig


@dataclass(frozen=True, kw_only=True)
class SamConfig(VitDetConfig):
    """Dimensions of one variant.

    Source: Kirillov et al. 2023, Appendix A; `build_sam.py` of segment-anything.
    """

    family: str = "sam1"


VARIANTS = (
    SamConfig("vit_b", encoder_width=768, encoder_depth=12, encoder_heads=12, global_attention_blocks=(2, 5, 8, 11)),
    SamConfig("vit_l", encoder_width=1024, encoder_depth=24, encoder_heads=16, global_attention_blocks=(5, 11, 17, 23)),
    SamConfig("vit_h", encoder_width=1280, encoder_depth=32, encoder_heads=16, global_attention_blocks=(7, 15, 23, 31)),
)
