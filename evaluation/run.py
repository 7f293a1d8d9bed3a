"""All images, one after the other or in several processes, each read when its turn comes."""

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

# Results are kept in order, so that figures are the same to the last digit: an image that takes long makes others wait.
AHEAD = 4


class EvaluationError(MaskmillError):
    """An evaluation that cannot go on, or of nothing."""


@dataclass(frozen=True)
class Skipped:
    """An image that cannot be read, and why."""

    reason: str


@dataclass(frozen=True)
class EvaluatorFactory:
    """Makes the evaluator where it is called: weights are loaded by every process, never sent to one."""

    config: RunConfig
    checkpoint: Path | None
    device: str
    settings: Settings

    def __call__(self) -> ImageEvaluator:
        """Raises CheckpointError where the checkpoint cannot be loaded, DeviceError where there is no such device."""
        sam = optimize(load_model(self.config.model, self.checkpoint).sam, self.config.precision, self.device)
        return ImageEvaluator(sam, self.config.generator, self.settings)


def measure_images(
    make_evaluator: Callable[[], ImageEvaluator], images: AnnotatedImages, count: int, processes: int
) -> Iterator[ImageScores | Skipped]:
    """The scores of the first `count` images in their order.

    Raises what `make_evaluator` does; EvaluationError where a process dies.
    """
    if processes == 1:
        work = _Work(make_evaluator(), images)
        yield from map(work.measure, range(count))
        return
    threads = max(1, (os.cpu_count() or 1) // processes)
    # Not forked: torch's threads would not survive it.
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
            f"one of {processes} processes died, perhaps for want of memory; try fewer --processes"
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


# Of a process of the pool, which has no other place for it.
_work: _Work | None = None


def _start(make_evaluator: Callable[[], ImageEvaluator], images: AnnotatedImages, threads: int) -> None:
    global _work
    # Ctrl-C goes to all processes: the first one answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    _work = _Work(make_evaluator(), images)


def _measure(index: int) -> ImageScores | Skipped:
    assert _work is not None
    return _work.measure(index)
