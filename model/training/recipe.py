"""Every constant of a training run: frozen, named, stored in the checkpoint."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """Steps at one input side (pixels), with the images and prompts that fit a step of about a second."""

    image_size: int
    steps: int
    images: int
    clicks: int
    boxes: int
    # How well a mask is judged matters most once the masks are good.
    iou_weight: float = 1.0
    # Times the learning rate of the recipe's curve.
    learning_rate_scale: float = 1.0


@dataclass(frozen=True)
class TrainingConfig:
    """A recipe: stages from coarse to fine, one learning-rate curve over all of them."""

    stages: tuple[Stage, ...]
    seed: int = 0
    learning_rate: float = 1e-3
    final_learning_rate: float = 2e-5
    warmup_steps: int = 200
    weight_decay: float = 0.02
    clip_norm: float = 1.0
    ema_decay: float = 0.998
    # Share of images that are photographs, where there are any.
    photograph_share: float = 0.65
    scene_count: int = 1000
    scene_side: int = 384
    # Share of the clicks that get a second click where the first answer was wrong; none in the first stage.
    second_round_share: float = 0.25
    affinity_channels: int = 32
    affinity_weight: float = 0.5

    @property
    def total_steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    def stage_at(self, step: int) -> tuple[int, Stage]:
        """Which stage a step (from 0) belongs to, and its index."""
        for index, stage in enumerate(self.stages):
            if step < stage.steps:
                return index, stage
            step -= stage.steps
        raise IndexError(step)


RECIPES: dict[str, TrainingConfig] = {
    # The embedded checkpoint: about 70 minutes in two processes on two cores with AVX512-BF16.
    "mini": TrainingConfig(
        stages=(
            Stage(image_size=128, steps=900, images=16, clicks=16, boxes=4),
            Stage(image_size=256, steps=2300, images=8, clicks=16, boxes=4),
            # A new resolution needs larger steps than the end of the curve has.
            Stage(image_size=512, steps=600, images=4, clicks=12, boxes=4, iou_weight=4.0, learning_rate_scale=3.0),
        )
    ),
}
