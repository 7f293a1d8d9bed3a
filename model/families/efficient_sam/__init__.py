"""EfficientSAM (2023): small plain ViTs, pretrained to reconstruct the features of SAM's image encoder."""

from __future__ import annotations

from maskmill.model.families.efficient_sam.checkpoint import OFFICIAL_KEYS, recognises
from maskmill.model.families.efficient_sam.config import VARIANTS
from maskmill.model.families.efficient_sam.encoder import PlainVit
from maskmill.model.families.efficient_sam.prompt_encoder import PointEncoder
from maskmill.model.families.family import Family
from maskmill.model.inference.fast_vitdet import speed_up
from maskmill.model.vitdet import variant_of

FAMILY = Family(
    title="EfficientSAM",
    source="https://github.com/yformer/EfficientSAM",
    terms="Apache-2.0",
    variants=VARIANTS,
    checkpoints={"efficient_sam_ti": "efficient_sam_vitt.pt", "efficient_sam_s": "efficient_sam_vits.pt"},
    build_encoder=PlainVit,
    speed_up=speed_up,
    recognises=recognises,
    variant_of=lambda state: variant_of(state, VARIANTS),
    official_keys=OFFICIAL_KEYS,
    build_prompt_encoder=PointEncoder,
)
