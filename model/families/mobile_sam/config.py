"""The variant of MobileSAM: Segment Anything with a small image encoder, TinyViT."""

from __future__ import annotations

from dataclasses import dataclass

from maskmill.model.config import NetworkConfig


@dataclass(frozen=True)
class TinyVitStage:
    """Blocks of equal width: convolutional if `heads` is 0, otherwise transformer blocks with attention in windows."""

    width: int
    blocks: int
    heads: int = 0
    window_size: int = 0


@dataclass(frozen=True, kw_only=True)
class MobileSamConfig(NetworkConfig):
    """Dimensions of a network with a TinyViT image encoder. The default stages are those of TinyViT 5M.

    Source: Zhang et al. 2023 (MobileSAM); `build_sam.py` of MobileSAM.
    """

    family: str = "mobile_sam"
    stages: tuple[TinyVitStage, ...] = (
        TinyVitStage(64, 2),
        TinyVitStage(128, 2, heads=4, window_size=7),
        TinyVitStage(160, 6, heads=5, window_size=14),
        TinyVitStage(320, 2, heads=10, window_size=7),
    )


VARIANTS = (MobileSamConfig("vit_t"),)
