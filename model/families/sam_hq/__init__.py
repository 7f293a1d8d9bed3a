"""SAM-HQ (2023): Segment Anything and MobileSAM with a mask decoder that adds details."""

from __future__ import annotations

import torch
from torch import nn

from maskmill.model.families.family import Family
from maskmill.model.families.mobile_sam import fast_encoder as fast_tiny_vit
from maskmill.model.families.mobile_sam.checkpoint import UNUSED_KEYS
from maskmill.model.families.sam_hq.checkpoint import HUGGING_FACE_KEYS, recognises, variant_of
from maskmill.model.families.sam_hq.config import VARIANTS, SamHqTinyVitConfig, SamHqVitConfig
from maskmill.model.families.sam_hq.decoder import HqMaskDecoder
from maskmill.model.families.sam_hq.encoder import HqImageEncoder, HqTinyVit
from maskmill.model.families.sam_hq.fast_decoder import FastHqMaskDecoder
from maskmill.model.inference import fast_vitdet


def _build_encoder(config: SamHqVitConfig | SamHqTinyVitConfig) -> nn.Module:
    return HqTinyVit(config) if isinstance(config, SamHqTinyVitConfig) else HqImageEncoder(config)


def _speed_up(encoder: HqImageEncoder | HqTinyVit, dtype: torch.dtype) -> None:
    if isinstance(encoder, HqTinyVit):
        fast_tiny_vit.speed_up(encoder, dtype)
    else:
        fast_vitdet.speed_up(encoder, dtype)


FAMILY = Family(
    title="SAM-HQ",
    source="https://github.com/SysCV/sam-hq",
    terms="Apache-2.0",
    variants=VARIANTS,
    checkpoints={
        "hq_vit_b": "sam_hq_vit_b.pth",
        "hq_vit_l": "sam_hq_vit_l.pth",
        "hq_vit_h": "sam_hq_vit_h.pth",
        "hq_vit_tiny": "sam_hq_vit_tiny.pth",
    },
    build_encoder=_build_encoder,
    speed_up=_speed_up,
    recognises=recognises,
    variant_of=variant_of,
    hugging_face_keys=HUGGING_FACE_KEYS,
    unused_keys=UNUSED_KEYS,
    build_decoder=HqMaskDecoder,
    fast_decoder=FastHqMaskDecoder,
)
