"""MobileSAM (2023): Segment Anything with TinyViT, an image encoder of five million parameters."""

from __future__ import annotations

from maskmill.model.families.family import Family
from maskmill.model.families.mobile_sam.checkpoint import UNUSED_KEYS, recognises, variant_of
from maskmill.model.families.mobile_sam.config import VARIANTS
from maskmill.model.families.mobile_sam.encoder import TinyVit
from maskmill.model.families.mobile_sam.fast_encoder import speed_up

FAMILY = Family(
    title="MobileSAM",
    source="https://github.com/ChaoningZhang/MobileSAM",
    terms="Apache-2.0",
    variants=VARIANTS,
    checkpoints={"vit_t": "mobile_sam.pt"},
    build_encoder=TinyVit,
    speed_up=speed_up,
    recognises=recognises,
    variant_of=lambda state: variant_of(state, VARIANTS),
    unused_keys=UNUSED_KEYS,
)
