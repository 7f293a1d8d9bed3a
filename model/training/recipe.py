"""Training recipes: the hyperparameters of a training run, which are stored in the checkpoint."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from itertools import accumulate

from maskmill.model.config import NetworkConfig


@dataclass(frozen=True)
class Stage:
    """Training steps at one input side (`image_size`, in pixels).

    The numbers of images and prompts are chosen so that a step takes about one second.
    """

    image_size: int
    steps: int
    images: int
    clicks: int
    boxes: int
    # At the first step of the stage and after its last step; linear interpolation in between.
    learning_rates: tuple[float, float]
    # Weight of the loss of the IoU head. The last stage uses a higher weight, because IoU prediction matters most when
    # the masks are already good.
    iou_weight: float = 1.0
    # Fraction of the clicks that are refined with a second click in the error region of the first mask.
    second_round_share: float = 0.25


@dataclass(frozen=True)
class TrainingConfig:
    """A training recipe: stages with increasing input sides, and the hyperparameters that all stages share."""

    stages: tuple[Stage, ...]
    seed: int = 0
    warmup_steps: int = 200
    weight_decay: float = 0.02
    clip_norm: float = 1.0
    ema_decay: float = 0.998
    # Weight of the initial weights when they are interpolated with the trained ones, which reduces forgetting.
    # Source: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models".
    start_share: float = 0.0
    # Fraction of training images that are photographs, if the run has data sets of photographs.
    photograph_share: float = 0.7
    # Fraction of the photographs that get one or two segments of other photographs by copy-paste augmentation.
    paste_share: float = 0.5
    scene_count: int = 1000
    scene_side: int = 384
    affinity_channels: int = 32
    affinity_weight: float = 0.5
    # Weight of `neighbour_loss`, the affinity loss between neighbouring pixels at logit resolution.
    neighbour_weight: float = 0.3

    @property
    def total_steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    def stage_at(self, step: int) -> tuple[int, Stage]:
        """Returns the index of the stage that contains a step (counted from 0), and the stage."""
        index = bisect_right(self._ends(), step)
        return index, self.stages[index]

    def learning_rate(self, step: int) -> float:
        """Returns the learning rate of a step (counted from 0)."""
        index, stage = self.stage_at(step)
        start, end = stage.learning_rates
        done = 1 - (self._ends()[index] - step) / stage.steps
        return (start + done * (end - start)) * min(1.0, (step + 1) / self.warmup_steps)

    def _ends(self) -> list[int]:
        return list(accumulate(stage.steps for stage in self.stages))


# Training from random weights.
FROM_NOTHING = TrainingConfig(
    stages=(
        Stage(128, 900, images=16, clicks=16, boxes=4, learning_rates=(1e-3, 9e-4), second_round_share=0.0),
        Stage(256, 1800, images=8, clicks=16, boxes=4, learning_rates=(9e-4, 2.2e-4)),
        # The first learning rate at a new input side is higher than the last one of the previous stage.
        Stage(512, 500, images=4, clicks=12, boxes=4, learning_rates=(3e-4, 1e-5), iou_weight=4.0),
    )
)
# Training from a pretrained trunk and, if there is a checkpoint, its mask decoder. With two processes on two CPU cores
# with AVX512-BF16, `mini` takes about one hour with this recipe and with FROM_CHECKPOINT.
FROM_TRUNK = TrainingConfig(
    stages=(
        Stage(256, 700, images=8, clicks=16, boxes=4, learning_rates=(8e-4, 4e-4)),
        Stage(512, 850, images=4, clicks=16, boxes=4, learning_rates=(5e-4, 1e-5), iou_weight=4.0),
    ),
    photograph_share=0.85,
)
FROM_CHECKPOINT = TrainingConfig(
    stages=(Stage(512, 850, images=4, clicks=16, boxes=4, learning_rates=(5e-4, 1e-5), iou_weight=4.0),),
    photograph_share=0.85,
    start_share=0.5,
)


def choose_recipe(model: NetworkConfig, from_checkpoint: bool, from_trunk: bool = False) -> TrainingConfig:
    """Returns the recipe for the initial weights of a run: a pretrained trunk, a whole checkpoint, or random weights.

    The input sides of the stages are scaled so that the last stage has the input side of the model.
    """
    recipe = FROM_TRUNK if from_trunk else FROM_CHECKPOINT if from_checkpoint else FROM_NOTHING
    largest = recipe.stages[-1].image_size
    stages = tuple(replace(stage, image_size=stage.image_size * model.image_size // largest) for stage in recipe.stages)
    return replace(recipe, stages=stages)
