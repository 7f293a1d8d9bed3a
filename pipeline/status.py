"""How far a run is: counts, speed and time left. Computed from the output alone, so no cluster is needed."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow.compute as pc

from maskmill.pipeline.estimate import Estimate, read_estimate
from maskmill.pipeline.finished import Run
from maskmill.pipeline.parts import retry_of, shard_of
from maskmill.pipeline.records import Work
from maskmill.pipeline.table import Footer

WINDOW_S = 600.0  # the speed is measured over the last ten minutes


@dataclass(frozen=True)
class PartStatus:
    """A committed part: the result of a shard or of one of its retries."""

    part: str
    ok: int  # images
    failed: int
    quarantined: int
    failures: Mapping[str, int]  # step -> failed and quarantined images
    masks: int
    attempts: int  # 1: the first attempt at the shard succeeded
    work: Work | None  # None: made by a version of maskmill that did not record it

    @property
    def images(self) -> int:
        return self.ok + self.failed + self.quarantined


@dataclass(frozen=True)
class WorkerStatus:
    """What one worker process has committed."""

    worker: str
    parts: int
    images: int
    images_per_second: float | None  # while it had shards; None if that took no measurable time
    last_commit: float  # seconds since 1970


@dataclass(frozen=True)
class Comparison:
    """A run against its estimate by `maskmill plan`. Times are seconds."""

    estimate: Estimate
    seconds_per_image: float  # that workers have taken so far
    seconds: float | None  # from the first image to the last one; None until the run is finished

    @property
    def image_error(self) -> float:
        """By how much of the estimated time an image takes longer; below 0: less long."""
        return self.seconds_per_image / self.estimate.seconds_per_image.mean - 1

    @property
    def error(self) -> float | None:
        """The same for the run."""
        return None if self.seconds is None else self.seconds / self.estimate.seconds.mean - 1


@dataclass(frozen=True)
class Status:
    """The state of a run. Images that a retry processed again count once, with their last result."""

    shards: int  # planned
    shards_done: int
    images: int | None  # planned; None if the source has tars: their images are known after reading them
    images_done: int
    ok: int
    failed: int
    quarantined: int
    failures: Mapping[str, int]  # step -> failed and quarantined images
    masks: int
    images_per_second: float | None  # over the last WINDOW_S; for a finished run, over its last WINDOW_S
    seconds_left: float | None  # None if the speed is unknown or 0
    last_commit: float | None  # seconds since 1970
    active_workers: int  # with a commit in the last WINDOW_S
    workers: Sequence[WorkerStatus]
    parts: Sequence[PartStatus]  # in the order of the plan; the retries of a shard follow it
    drivers: Sequence[Mapping[str, Any]]  # the summaries of the drivers that have ended: see summary.Summary
    comparison: Comparison | None  # None if the output has no estimate or no work yet

    @property
    def finished(self) -> bool:
        return self.shards_done == self.shards


class StatusReader:
    """Reads the status of a run repeatedly. Each time it reads only the footers of parts that are new."""

    def __init__(self, run: Run, clock: Callable[[], float] = time.time) -> None:
        self._run, self._clock = run, clock
        self._parts: dict[str, PartStatus] = {}

    def read(self) -> Status:
        """The status now. Raises ObjectError if a part is damaged, StorageError if the store cannot be reached."""
        for part, footer in self._run.footers(skip=self._parts.keys()):
            self._parts[part] = _part_status(part, footer)
        plan = self._run.plan
        in_order = sorted(self._parts.values(), key=lambda part: (int(shard_of(part.part)), retry_of(part.part)))
        status = _summarise(in_order, len(plan), plan.n_images, self._run.summaries(), self._clock())
        estimate = read_estimate(self._run.storage)
        return replace(status, comparison=estimate and _compare(status, estimate))

    def watch(self, interval: float) -> Iterator[Status]:
        """The status now and every `interval` seconds, until the run is finished."""
        while not (status := self.read()).finished:
            yield status
            time.sleep(interval)
        yield status


def last_parts(parts: Iterable[PartStatus]) -> list[PartStatus]:
    """The last part of each shard. It has all failures of the shard, because a retry processes all of them."""
    return list({shard_of(part.part): part for part in parts}.values())


def _part_status(part: str, footer: Footer) -> PartStatus:
    images = footer.images
    statuses = Counter(images["status"].to_pylist())
    steps = Counter(images.filter(pc.field("status") != "ok")["error_step"].to_pylist())
    masks, attempts = sum(images["n_masks"].to_pylist()), max(images["attempt"].to_pylist(), default=1)
    return PartStatus(
        *(part, statuses["ok"], statuses["failed"], statuses["quarantined"], dict(steps), masks, attempts, footer.work)
    )


def _summarise(
    parts: Sequence[PartStatus], shards: int, images: int | None, drivers: Sequence[Mapping[str, Any]], now: float
) -> Status:
    last = last_parts(parts)
    ok = sum(part.ok for part in parts)
    failed = sum(part.failed for part in last)
    quarantined = sum(part.quarantined for part in last)
    failures: Counter[str] = Counter()
    for part in last:
        failures.update(part.failures)
    works = [(part, part.work) for part in parts if part.work]
    last_commit = max((work.ended for _, work in works), default=None)
    left = shards - len(last)
    # Clocks of machines differ a little: a commit can be in the future.
    end = max(now, last_commit or now) if left else last_commit or now
    recent = [(part, work) for part, work in works if work.ended > end - WINDOW_S]
    # After a pause, and at the beginning, the speed is measured from the first work on.
    seconds = min(WINDOW_S, end - min((work.began for _, work in recent), default=end))
    if recent and seconds > 0:
        speed = sum(part.images for part, _ in recent) / seconds
        seconds_left = left * seconds / len(recent)
    else:
        speed, seconds_left = (0.0 if works else None), None if left else 0.0
    return Status(
        shards=shards,
        shards_done=len(last),
        images=images,
        images_done=ok + failed + quarantined,
        ok=ok,
        failed=failed,
        quarantined=quarantined,
        failures=dict(failures.most_common()),
        masks=sum(part.masks for part in parts),
        images_per_second=speed,
        seconds_left=seconds_left,
        last_commit=last_commit,
        active_workers=len({work.worker for _, work in recent}),
        workers=_by_worker(works),
        parts=parts,
        drivers=drivers,
        comparison=None,
    )


def _compare(status: Status, estimate: Estimate) -> Comparison | None:
    works = [(part, part.work) for part in status.parts if part.work and part.images and not retry_of(part.part)]
    if not works:
        return None
    per_image = sum(work.ended - work.began for _, work in works) / sum(part.images for part, _ in works)
    seconds = max(work.ended for _, work in works) - min(work.began for _, work in works)
    return Comparison(estimate, per_image, seconds if status.finished else None)


def _by_worker(works: Iterable[tuple[PartStatus, Work]]) -> list[WorkerStatus]:
    grouped: defaultdict[str, list[tuple[PartStatus, Work]]] = defaultdict(list)
    for part, work in works:
        grouped[work.worker].append((part, work))
    workers: list[WorkerStatus] = []
    for worker, done in sorted(grouped.items()):
        images = sum(part.images for part, _ in done)
        seconds = sum(work.ended - work.began for _, work in done)
        speed = images / seconds if seconds > 0 else None
        workers.append(WorkerStatus(worker, len(done), images, speed, max(work.ended for _, work in done)))
    return workers
