"""SamConfig, the dimensions of a network, and the table of named variants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from maskmill.model.errors import ConfigError


@dataclass(frozen=True)
class TrunkStage:
    """Blocks of equal width in a convolutional trunk. `stride` is that of the first block."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    channels: int


# Trunks with published ImageNet weights, by the name of the weights.
TRUNKS: dict[str, tuple[TrunkStage, ...]] = {
    "efficientnet-lite2": (
        TrunkStage(1, kernel=3, stride=1, expansion=1, channels=16),
        TrunkStage(3, kernel=3, stride=2, expansion=6, channels=24),
        TrunkStage(3, kernel=5, stride=2, expansion=6, channels=48),
        TrunkStage(4, kernel=3, stride=2, expansion=6, channels=88),
        TrunkStage(4, kernel=5, stride=1, expansion=6, channels=120),
        TrunkStage(5, kernel=5, stride=2, expansion=6, channels=208),
        TrunkStage(1, kernel=3, stride=1, expansion=6, channels=352),
    ),
}


@dataclass(frozen=True)
class SamConfig:
    """Dimensions of one SAM variant. The defaults are shared by all published variants.

    Source: Kirillov et al. 2023, Appendix A; `build_sam.py` of segment-anything.
    """

    name: str
    # Image encoder (ViTDet): width, blocks, heads; which blocks attend globally, the rest in windows.
    encoder_width: int
    encoder_depth: int
    encoder_heads: int
    global_attention_blocks: tuple[int, ...]
    window_size: int = 14
    encoder_mlp_ratio: int = 4
    relative_positions: bool = True
    # "patch": one strided convolution, as published. "conv": a pyramid of 3x3 convolutions, which
    # learns much faster from little data.
    stem: Literal["patch", "conv"] = "patch"
    # Residual blocks after each halving of the "conv" stem, finest first; none where it is shorter.
    stem_blocks: tuple[int, ...] = ()
    # Whether the mask upscaler also gets the stem's finer features, as in SAM 2. Needs the "conv" stem.
    high_resolution_skips: bool = False
    # Convolutional trunk (EfficientNet-Lite) before the blocks, in place of the stem. Needs high_resolution_skips.
    trunk: tuple[TrunkStage, ...] = ()
    # Input side in pixels, pixels per embedding cell, channels of the embedding.
    image_size: int = 1024
    patch_size: int = 16
    embed_dim: int = 256
    mask_prompt_channels: int = 16
    # Mask decoder.
    decoder_depth: int = 2
    decoder_heads: int = 8
    decoder_mlp_dim: int = 2048
    decoder_attention_downsample: int = 2
    multimask_outputs: int = 3
    iou_head_depth: int = 3
    iou_head_width: int = 256
    # Normalisation, in 0..255 RGB.
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    pixel_std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    # The generator preset with thresholds for the scores of this model.
    default_preset: str = "official"

    @property
    def grid_size(self) -> int:
        """Side of the embedding, in cells."""
        return self.image_size // self.patch_size

    @property
    def mask_size(self) -> int:
        """Side of the low-resolution mask logits, in logit pixels: four per embedding cell."""
        return 4 * self.grid_size


VARIANTS: dict[str, SamConfig] = {
    "vit_b": SamConfig("vit_b", 768, 12, 12, global_attention_blocks=(2, 5, 8, 11)),
    "vit_l": SamConfig("vit_l", 1024, 24, 16, global_attention_blocks=(5, 11, 17, 23)),
    "vit_h": SamConfig("vit_h", 1280, 32, 16, global_attention_blocks=(7, 15, 23, 31)),
    "mini": SamConfig(
        "mini",
        encoder_width=256,
        encoder_depth=7,
        encoder_heads=8,
        global_attention_blocks=(1, 3, 5, 6),
        window_size=16,
        encoder_mlp_ratio=4,
        relative_positions=False,
        stem="conv",
        stem_blocks=(0, 2, 2, 1),
        high_resolution_skips=True,
        image_size=512,
        embed_dim=128,
        decoder_heads=4,
        decoder_mlp_dim=512,
        decoder_attention_downsample=1,
        iou_head_width=128,
        default_preset="mini",
    ),
    # `mini` with a pretrained trunk. It has no embedded weights yet: `maskmill train --trunk efficientnet-lite2`.
    "mini_lite": SamConfig(
        "mini_lite",
        encoder_width=256,
        encoder_depth=3,
        encoder_heads=8,
        global_attention_blocks=(0, 1, 2),
        relative_positions=False,
        trunk=TRUNKS["efficientnet-lite2"],
        high_resolution_skips=True,
        image_size=512,
        embed_dim=128,
        decoder_heads=4,
        decoder_mlp_dim=512,
        decoder_attention_downsample=1,
        iou_head_width=128,
        pixel_mean=(127.0, 127.0, 127.0),
        pixel_std=(128.0, 128.0, 128.0),
        default_preset="mini",
    ),
}


def find_variant(name: str) -> SamConfig:
    """The entry of VARIANTS with this name. Raises ConfigError for an unknown name."""
    if name not in VARIANTS:
        raise ConfigError(f"there is no model {name!r}; choose one of {', '.join(VARIANTS)}")
    return VARIANTS[name]
