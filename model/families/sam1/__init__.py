"""Segment Anything (2023): ViT-B, ViT-L and ViT-H."""

from __future__ import annotations

from maskmill.model.families.family import Family
from maskmill.model.families.sam1.config import VARIANTS
from maskmill.model.families.sam1.encoder import ImageEncoder
from maskmill.model.inference.fast_vitdet import speed_up
from maskmill.model.vitdet import HUGGING_FACE_KEYS, variant_of

FAMILY = Family(
    title="Segment Anything",
    source="https://github.com/facebookresearch/segment-anything",
    terms="Apache-2.0",
    variants=VARIANTS,
    checkpoints={
        "vit_b": "sam_vit_b_01ec64.pth",
        "vit_l": "sam_vit_l_0b3195.pth",
        "vit_h": "sam_vit_h_4b8939.pth",
    },
    trainable=True,
    build_encoder=ImageEncoder,
    speed_up=speed_up,
    recognises=lambda keys: not {"image_encoder.pos_embed", "vision_encoder.pos_embed"}.isdisjoint(keys),
    variant_of=lambda state: variant_of(state, VARIANTS),
    hugging_face_keys=HUGGING_FACE_KEYS,
)
