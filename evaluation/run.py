"""Evaluates a model on many images, in this process or in several."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import torch

from maskmill.annotations import AnnotatedImages, AnnotationError
from maskmill.evaluation.image import ImageEvaluator, ImageScores, Settings
from maskmill.model.checkpoint import load_model
from maskmill.model.errors import MaskmillError
from maskmill.model.optimize import optimize
from maskmill.pipeline.config import RunConfig

# Results come in the order of the images, so that sums are reproducible to the last digit. Tasks in flight per process:
# enough that one slow image does not leave the other processes idle.
AHEAD = 4


class EvaluationError(MaskmillError):
    """An evaluation without images, or one that cannot continue."""


@dataclass(frozen=True)
class Skipped:
    """An image that cannot be read, and why."""

    reason: str


@dataclass(frozen=True)
class EvaluatorFactory:
    """Makes the evaluator in the calling process: each process loads the weights itself."""

    config: RunConfig
    checkpoint: Path | None
    device: str
    settings: Settings

    def __call__(self) -> ImageEvaluator:
        """Raises CheckpointError if the checkpoint cannot be loaded, DeviceError if the device does not exist."""
        network = optimize(load_model(self.config.model, self.checkpoint).network, self.config.precision, self.device)
        return ImageEvaluator(network, self.config.generator, self.settings)


def measure_images(
    make_evaluator: Callable[[], ImageEvaluator], images: AnnotatedImages, count: int, processes: int
) -> Iterator[ImageScores | Skipped]:
    """The scores of the first `count` images, in order.

    Raises as `make_evaluator` does, and EvaluationError if a process dies.
    """
    if processes == 1:
        work = _Work(make_evaluator(), images)
        yield from map(work.measure, range(count))
        return
    threads = max(1, (os.cpu_count() or 1) // processes)
    # Not fork: it does not copy the threads of torch.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, _start, (make_evaluator, images, threads))
    try:
        waiting: deque[Future[ImageScores | Skipped]] = deque()
        for index in range(count):
            waiting.append(pool.submit(_measure, index))
            if len(waiting) == AHEAD * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise EvaluationError(
            f"one of {processes} processes died, perhaps out of memory: use fewer --processes"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class _Work:
    evaluator: ImageEvaluator
    images: AnnotatedImages

    def measure(self, index: int) -> ImageScores | Skipped:
        try:
            return self.evaluator.measure(self.images[index])
        except AnnotationError as error:
            return Skipped(str(error))


# State of a pool process: set once by `_start`, used by `_measure`.
_work: _Work | None = None


def _start(make_evaluator: Callable[[], ImageEvaluator], images: AnnotatedImages, threads: int) -> None:
    global _work
    # Ctrl-C reaches all processes. The parent process handles it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    _work = _Work(make_evaluator(), images)


def _measure(index: int) -> ImageScores | Skipped:
    assert _work is not None
    return _work.measure(index)
