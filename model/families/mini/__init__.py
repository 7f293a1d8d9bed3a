"""The embedded model, a small network for CPUs."""

from __future__ import annotations

from maskmill.model.families.family import Family
from maskmill.model.families.mini.config import VARIANTS
from maskmill.model.families.mini.encoder import MiniEncoder
from maskmill.model.inference.fast_vitdet import speed_up
from maskmill.model.vitdet import variant_of
from maskmill.model.weights import MINI_TERMS

FAMILY = Family(
    title="mini",
    source="embedded in maskmill",
    terms=MINI_TERMS,
    variants=VARIANTS,
    checkpoints={"mini": "embedded"},
    trainable=True,
    build_encoder=MiniEncoder,
    speed_up=speed_up,
    recognises=lambda keys: any(key.startswith("image_encoder.trunk.stem.") for key in keys),
    variant_of=lambda state: variant_of(state, VARIANTS),
)
