"""A SAM and a recipe small enough to train in seconds, and data for them."""

from __future__ import annotations

import numpy as np

from maskmill.model.config import SamConfig
from maskmill.model.training.data import LabelledImage
from maskmill.model.training.recipe import Stage, TrainingConfig

TINY = SamConfig(
    "tiny",
    encoder_width=64,
    encoder_depth=1,
    encoder_heads=2,
    global_attention_blocks=(0,),
    window_size=4,
    relative_positions=False,
    stem="conv",
    stem_blocks=(0, 1),
    high_resolution_skips=True,
    image_size=128,
    embed_dim=32,
    decoder_heads=2,
    decoder_mlp_dim=64,
    decoder_attention_downsample=1,
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
