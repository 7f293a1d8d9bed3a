"""The interface between a worker and the mask generator, and the factory that builds the generator of a run."""

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
    """Generates the masks of an image. Implemented by MaskGenerator, and by fakes in tests."""

    @property
    def at_once(self) -> int:
        """How many threads should call `generate`, so that device and host work on different images."""
        ...

    def prepare(self, pixels_HW3: NDArray[np.uint8]) -> ResizedImage:
        """Preprocesses an RGB image on the CPU. Thread-safe. An exception fails this image only."""
        ...

    def generate(self, image: ResizedImage, timer: StepTimer) -> ImageMasks:
        """The masks of an image. An exception fails this image only."""
        ...

    def device_answers(self) -> bool:
        """Whether the device still computes. A worker calls this after each exception.

        After a fault of a GPU every later CUDA call of the process fails, so later images must not be recorded as
        failed.
        """
        ...


@dataclass(frozen=True)
class GeneratorFactory:
    """Builds the engine of a run in the calling process. Each worker loads the weights itself."""

    config: RunConfig
    checkpoint: Path | None
    weights_sha256: str
    device: str
    gpus_per_worker: float = 1

    def __call__(self) -> Engine:
        """Raises CheckpointError if the checkpoint cannot be loaded or differs from the one that the run began with."""
        loaded = load_model(self.config.model, self.checkpoint)
        if loaded.sha256 != self.weights_sha256:
            raise CheckpointError(
                f"{self.checkpoint}: sha256 is {loaded.sha256} on this machine, but the run began with "
                f"{self.weights_sha256}: put the same file on every machine"
            )
        network = optimize(loaded.network, self.config.precision, self.device)
        return MaskGenerator(network, self.config.generator, gpu_share=self.gpus_per_worker)
