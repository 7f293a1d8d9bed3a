"""What finds the masks of an image: the interface that a worker calls, and what makes the real one for a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from maskmill.model.checkpoint import load_model
from maskmill.model.errors import CheckpointError
from maskmill.model.optimize import optimize
from maskmill.pipeline.config import RunConfig
from maskmill.pipeline.generator import MaskGenerator
from maskmill.pipeline.records import ImageMasks, StepTimer
from maskmill.pipeline.views import ResizedImage


class Engine(Protocol):
    """What finds the masks of an image: MaskGenerator, or a fake."""

    @property
    def at_once(self) -> int:
        """How many threads may call `generate`: the device works on one image while the host does on another."""
        ...

    def prepare(self, pixels_HW3: NDArray[np.uint8]) -> ResizedImage:
        """All that is done to an RGB image ahead of the device, by any thread. What it raises ends that image only."""
        ...

    def generate(self, image: ResizedImage, timer: StepTimer) -> ImageMasks:
        """The masks of an image. What it raises ends that image only."""
        ...

    def device_answers(self) -> bool:
        """Whether the device still computes. A worker asks after each error: a GPU that has faulted fails every later
        call of its process, so the images that follow are not to blame.
        """
        ...


@dataclass(frozen=True)
class SamFactory:
    """Makes the engine of a run in the process that calls it: each worker loads the weights itself."""

    config: RunConfig
    checkpoint: Path | None
    weights_sha256: str
    device: str

    def __call__(self) -> Engine:
        """Raises CheckpointError where the checkpoint cannot be loaded, or is not the one the run started with."""
        loaded = load_model(self.config.model, self.checkpoint)
        if loaded.sha256 != self.weights_sha256:
            raise CheckpointError(
                f"{self.checkpoint}: sha256 is {loaded.sha256} on this machine, but the run began with "
                f"{self.weights_sha256}: put the same file on every machine"
            )
        return MaskGenerator(optimize(loaded.sam, self.config.precision, self.device), self.config.generator)
