"""The embedded model: its variants, and the convolutional trunks with published weights."""

from __future__ import annotations

from dataclasses import dataclass

from maskmill.model.vitdet import VitDetConfig


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


@dataclass(frozen=True, kw_only=True)
class MiniConfig(VitDetConfig):
    """Dimensions of a small network for CPUs."""

    family: str = "mini"
    # The convolutional trunk (EfficientNet-Lite) before the blocks.
    trunk: tuple[TrunkStage, ...]
    relative_positions: bool = False
    high_resolution_skips: bool = True


VARIANTS = (
    MiniConfig(
        "mini",
        encoder_width=256,
        encoder_depth=3,
        encoder_heads=8,
        global_attention_blocks=(0, 1, 2),
        trunk=TRUNKS["efficientnet-lite2"],
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
)
