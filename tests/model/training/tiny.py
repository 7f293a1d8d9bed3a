"""A SAM and a recipe small enough to train in seconds, and data for them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from maskmill.model.families.mini.config import MiniConfig, TrunkStage
from maskmill.model.families.mini.efficientnet_lite import STEM_CHANNELS
from maskmill.model.families.sam1.config import SamConfig
from maskmill.model.training.data import LabelledImage
from maskmill.model.training.recipe import Stage, TrainingConfig

TINY_TRUNK = (
    TrunkStage(1, kernel=3, stride=1, expansion=1, channels=8),
    TrunkStage(1, kernel=3, stride=2, expansion=2, channels=8),
    TrunkStage(2, kernel=5, stride=2, expansion=2, channels=16),
    TrunkStage(1, kernel=3, stride=2, expansion=2, channels=16),
    TrunkStage(1, kernel=5, stride=1, expansion=2, channels=24),
    TrunkStage(1, kernel=5, stride=2, expansion=2, channels=24),
    TrunkStage(1, kernel=3, stride=1, expansion=2, channels=32),
)
TINY = MiniConfig(
    "tiny",
    encoder_width=64,
    encoder_depth=1,
    encoder_heads=2,
    global_attention_blocks=(0,),
    window_size=4,
    trunk=TINY_TRUNK,
    image_size=128,
    embed_dim=32,
    decoder_heads=2,
    decoder_mlp_dim=64,
    decoder_attention_downsample=1,
    iou_head_width=32,
)

PUBLISHED = SamConfig(
    "published",
    encoder_width=64,
    encoder_depth=1,
    encoder_heads=2,
    global_attention_blocks=(0,),
    image_size=128,
    embed_dim=32,
    decoder_heads=2,
    decoder_mlp_dim=64,
    iou_head_width=32,
)

TWO_STAGES = TrainingConfig(
    stages=(Stage(64, 3, 2, 4, 2, (1e-3, 5e-4), second_round_share=0), Stage(128, 3, 2, 4, 2, (5e-4, 1e-4))),
    warmup_steps=2,
    scene_count=2,
    scene_side=64,
)


class OneImage:
    """A dataset of a single image."""

    def __init__(self, image: LabelledImage) -> None:
        self._image = image

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int, /) -> LabelledImage:
        return self._image


def squares() -> LabelledImage:
    """A red square and a blue one on grey, labelled in one map."""
    map_HW = np.ones((64, 64), np.int32)
    map_HW[8:32, 8:32], map_HW[36:60, 30:60] = 2, 3
    colours = np.array([[0, 0, 0], [128, 128, 128], [220, 20, 20], [20, 20, 220]], np.uint8)
    return LabelledImage(colours[map_HW], map_HW[None])


def published_trunk() -> dict[str, Tensor]:
    """Random weights of TINY_TRUNK as the published packages have them: with batch norm apart."""
    generator = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}

    def add(convolution: str, norm: str, *shape: int) -> None:
        state[f"{convolution}.weight"] = 0.3 * torch.randn(shape, generator=generator)
        for name in ("weight", "running_var"):
            state[f"{norm}.{name}"] = 0.5 + torch.rand(shape[0], generator=generator)
        for name in ("bias", "running_mean"):
            state[f"{norm}.{name}"] = 0.1 * torch.randn(shape[0], generator=generator)

    add("_conv_stem", "_bn0", STEM_CHANNELS, 3, 3, 3)
    channels, number = STEM_CHANNELS, 0
    for stage in TINY_TRUNK:
        for _ in range(stage.blocks):
            block, width = f"_blocks.{number}", channels * stage.expansion
            if stage.expansion > 1:
                add(f"{block}._expand_conv", f"{block}._bn0", width, channels, 1, 1)
            add(f"{block}._depthwise_conv", f"{block}._bn1", width, 1, stage.kernel, stage.kernel)
            add(f"{block}._project_conv", f"{block}._bn2", stage.channels, width, 1, 1)
            channels, number = stage.channels, number + 1
    return state
