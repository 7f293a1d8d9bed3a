"""SAM 2 (2024) on images: Hiera-T, Hiera-S, Hiera-B+ and Hiera-L, with the weights of SAM 2.1 or SAM 2.0."""

from __future__ import annotations

from maskmill.model.families.family import Family
from maskmill.model.families.sam2.checkpoint import HUGGING_FACE_KEYS, OFFICIAL_KEYS, VIDEO_KEYS, variant_of
from maskmill.model.families.sam2.config import VARIANTS
from maskmill.model.families.sam2.encoder import Sam2Encoder
from maskmill.model.families.sam2.fast_encoder import speed_up

FAMILY = Family(
    title="SAM 2",
    source="https://github.com/facebookresearch/sam2",
    terms="Apache-2.0",
    variants=VARIANTS,
    checkpoints={
        "hiera_t": "sam2.1_hiera_tiny.pt",
        "hiera_s": "sam2.1_hiera_small.pt",
        "hiera_b+": "sam2.1_hiera_base_plus.pt",
        "hiera_l": "sam2.1_hiera_large.pt",
    },
    build_encoder=Sam2Encoder,
    speed_up=speed_up,
    recognises=lambda keys: any(
        key.startswith(("image_encoder.trunk.blocks.", "vision_encoder.backbone.")) for key in keys
    ),
    variant_of=variant_of,
    hugging_face_keys=HUGGING_FACE_KEYS,
    official_keys=OFFICIAL_KEYS,
    unused_keys=VIDEO_KEYS,
)
