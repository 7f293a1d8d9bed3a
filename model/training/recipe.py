"""Every constant of a training run: frozen, named, stored in the checkpoint."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from itertools import accumulate

from maskmill.model.config import SamConfig


@dataclass(frozen=True)
class Stage:
    """Steps at one input side (pixels), with the images and prompts that fit a step of about a second."""

    image_size: int
    steps: int
    images: int
    clicks: int
    boxes: int
    # At the stage's first step and after its last, linear between.
    learning_rates: tuple[float, float]
    # How well a mask is judged matters most once the masks are good.
    iou_weight: float = 1.0
    # Share of the clicks that get a second click where the first answer was wrong.
    second_round_share: float = 0.25


@dataclass(frozen=True)
class TrainingConfig:
    """A recipe: stages from coarse to fine, and what they have in common."""

    stages: tuple[Stage, ...]
    seed: int = 0
    warmup_steps: int = 200
    weight_decay: float = 0.02
    clip_norm: float = 1.0
    ema_decay: float = 0.998
    # Of the weights that a run starts from in those that it leaves: what it learns does not replace all that was known.
    # Source: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models".
    start_share: float = 0.0
    # Share of images that are photographs, where there are any.
    photograph_share: float = 0.7
    # Share of the photographs on which segments of others are pasted, up to two.
    paste_share: float = 0.5
    scene_count: int = 1000
    scene_side: int = 384
    affinity_channels: int = 32
    affinity_weight: float = 0.5
    # As above, of neighbouring pixels at the resolution of the logits.
    neighbour_weight: float = 0.3

    @property
    def total_steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    def stage_at(self, step: int) -> tuple[int, Stage]:
        """Which stage a step (from 0) belongs to, and its index."""
        index = bisect_right(self._ends(), step)
        return index, self.stages[index]

    def learning_rate(self, step: int) -> float:
        """Of a step (from 0)."""
        index, stage = self.stage_at(step)
        start, end = stage.learning_rates
        done = 1 - (self._ends()[index] - step) / stage.steps
        return (start + done * (end - start)) * min(1.0, (step + 1) / self.warmup_steps)

    def _ends(self) -> list[int]:
        return list(accumulate(stage.steps for stage in self.stages))


# Both for inputs of 512 pixels, on two processes of two cores with AVX512-BF16: an hour, and then one and a half.
FROM_NOTHING = TrainingConfig(
    stages=(
        Stage(128, 900, images=16, clicks=16, boxes=4, learning_rates=(1e-3, 9e-4), second_round_share=0.0),
        Stage(256, 1800, images=8, clicks=16, boxes=4, learning_rates=(9e-4, 2.2e-4)),
        # A new resolution needs larger steps than the stage before ended with.
        Stage(512, 500, images=4, clicks=12, boxes=4, learning_rates=(3e-4, 1e-5), iou_weight=4.0),
    )
)
# The same from a trunk that knows photographs, and from a decoder that knows how to answer: an hour and a quarter.
FROM_TRUNK = TrainingConfig(
    stages=(
        Stage(256, 700, images=8, clicks=16, boxes=4, learning_rates=(8e-4, 4e-4)),
        Stage(512, 850, images=4, clicks=16, boxes=4, learning_rates=(5e-4, 1e-5), iou_weight=4.0),
    ),
    photograph_share=0.85,
)
FROM_CHECKPOINT = TrainingConfig(
    stages=(Stage(512, 1750, images=4, clicks=16, boxes=4, learning_rates=(6e-4, 1e-5), iou_weight=4.0),),
    start_share=0.5,
)


def choose_recipe(model: SamConfig, from_checkpoint: bool, from_trunk: bool = False) -> TrainingConfig:
    """The recipe for a model by what it starts from: a pretrained trunk, a whole checkpoint, or nothing.

    Its stages go up to the model's input side.
    """
    recipe = FROM_TRUNK if from_trunk else FROM_CHECKPOINT if from_checkpoint else FROM_NOTHING
    largest = recipe.stages[-1].image_size
    stages = tuple(replace(stage, image_size=stage.image_size * model.image_size // largest) for stage in recipe.stages)
    return replace(recipe, stages=stages)
