"""The status of a run, from its parts: counts, speed, time left, workers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from maskmill.pipeline.finished import open_finished_run
from maskmill.pipeline.job import Job
from maskmill.pipeline.parts import masks_key
from maskmill.pipeline.plan import Plan
from maskmill.pipeline.records import Shard, process_name
from maskmill.pipeline.status import WINDOW_S, Status, StatusReader
from maskmill.pipeline.storage import Storage
from maskmill.pipeline.table import encode_part
from maskmill.pipeline.worker import run_local
from tests.fakes import FAIL, image_result, picture
from tests.pipeline.sources import tar_bytes
from tests.runs import begin, retry


@dataclass
class Clock:
    """A wall clock that advances `step` seconds each time a worker looks at it: twice per shard."""

    now: float = 1000.0
    step: float = 0.0

    def __call__(self) -> float:
        self.now += self.step
        return self.now


@dataclass
class Started:
    """A run of ten images in five shards. `work` processes some of them as one worker."""

    job: Job
    plan: Plan
    clock: Clock = field(default_factory=Clock)

    def work(self, count: int, worker: str = "gpu-1:7", seconds: float = 10.0) -> None:
        """The next `count` shards, `seconds` each, one after the other."""
        left = list(self.plan.without(self.job.ledger.committed()))[:count]
        self.clock.step = seconds / 2
        run_local(replace(self.job, wall_clock=self.clock, worker_name=lambda: worker), left, lambda _: None)
        self.clock.step = 0.0

    def status(self) -> Status:
        return StatusReader(open_finished_run(self.job.ledger.storage), self.clock).read()


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for seed in range(10):
        (folder / f"{seed}.png").write_bytes(picture(seed))
    return folder


@pytest.fixture
def started(photographs: Path, tmp_path: Path) -> Started:
    return Started(*begin(photographs, tmp_path / "out"))


def test_nothing_is_done_when_a_run_has_no_part_yet(started: Started):
    status = started.status()
    assert (status.shards, status.shards_done, status.images, status.images_done) == (5, 0, 10, 0)
    assert (status.images_per_second, status.seconds_left, status.last_commit) == (None, None, None)
    assert not status.finished


def test_speed_and_time_left_when_a_run_goes_on(started: Started):
    started.work(1, "gpu-1:7")
    started.work(2, "gpu-2:9", seconds=20.0)
    status = started.status()
    assert (status.shards_done, status.images_done, status.ok, status.masks) == (3, 6, 6, 18)
    # Six images in the 45 s since the first worker looked at the clock for the first time.
    assert status.images_per_second == pytest.approx(6 / 45)
    assert status.seconds_left == pytest.approx(2 * 45 / 3)
    assert [(worker.worker, worker.parts, worker.images) for worker in status.workers] == [
        ("gpu-1:7", 1, 2),
        ("gpu-2:9", 2, 4),
    ]
    assert status.workers[1].images_per_second == pytest.approx(4 / 20)
    assert status.last_commit == started.clock.now
    assert [part.work and part.work.worker for part in status.parts] == ["gpu-1:7", "gpu-2:9", "gpu-2:9"]


def test_speed_falls_to_nothing_when_no_part_is_committed_any_more(started: Started):
    started.work(2)
    before = started.status().images_per_second
    started.clock.now += 100
    assert 0 < (started.status().images_per_second or 0) < (before or 0)
    started.clock.now += WINDOW_S
    status = started.status()
    assert (status.images_per_second, status.seconds_left, status.active_workers) == (0, None, 0)


def test_speed_is_that_after_the_pause_when_a_run_was_resumed(started: Started):
    started.work(2)
    started.clock.now += 10 * WINDOW_S
    started.work(1, seconds=4.0)
    assert started.status().images_per_second == pytest.approx(2 / 2)  # images / (ended - began)


def test_speed_stays_when_a_run_is_finished(started: Started):
    started.work(5)
    status = started.status()
    assert (status.finished, status.seconds_left) == (True, 0)
    started.clock.now += 1e6
    assert started.status() == status
    assert status.images_per_second == pytest.approx(10 / 45)


def test_failures_are_counted_by_step_and_once_when_they_are_retried(photographs: Path, tmp_path: Path):
    (photographs / "1.png").write_bytes(b"no image")
    (photographs / "2.png").write_bytes(picture(2, FAIL))
    started = Started(*begin(photographs, tmp_path / "out"))
    started.work(5)
    status = started.status()
    assert (status.images_done, status.ok, status.failed) == (10, 8, 2)
    assert status.failures == {"decode": 1, "filter": 1}
    (photographs / "1.png").write_bytes(picture(1))
    retry(tmp_path / "out")
    status = started.status()
    assert (status.images_done, status.ok, status.failed, status.failures) == (10, 9, 1, {"filter": 1})
    assert [part.part for part in status.parts][:3] == ["00000", "00000-retry-1", "00001"]


def test_number_of_images_is_unknown_when_the_source_has_tars(tmp_path: Path):
    for number in range(3):
        (tmp_path / "tars").mkdir(exist_ok=True)
        (tmp_path / "tars" / f"{number}.tar").write_bytes(tar_bytes({"a.png": picture(number)}))
    started = Started(*begin(tmp_path / "tars", tmp_path / "out"))
    started.work(1)
    status = started.status()
    assert (status.shards, status.shards_done, status.images, status.images_done) == (3, 1, None, 1)
    assert status.seconds_left == pytest.approx(2 * 5)


def test_speed_is_unknown_when_the_parts_do_not_say_when_they_were_made(started: Started):
    """Parts of a version that did not record the worker."""
    shard, ledger = started.plan[0], started.job.ledger
    results = [image_result(image_id, np.ones((1, 4, 4), np.bool_)) for image_id in shard.image_ids or ()]
    ledger.commit(shard, encode_part(shard, results, ledger.identity))
    status = started.status()
    assert (status.images_done, status.images_per_second, status.last_commit, status.workers) == (2, None, None, [])


def test_part_names_the_process_and_the_time_when_nothing_else_is_said(started: Started):
    run_local(replace(started.job, worker_name=process_name, wall_clock=Clock(5.0)), [started.plan[0]], lambda _: None)
    (part,) = started.status().parts
    assert part.work is not None
    assert (part.work.worker, part.work.ended) == (process_name(), 5.0)


@dataclass(frozen=True)
class Counting:
    """A store that counts what is opened."""

    storage: Storage
    opened: list[str] = field(default_factory=list[str])

    def __getattr__(self, name: str) -> object:
        return getattr(self.storage, name)

    def open(self, key: str) -> object:
        self.opened.append(key)
        return self.storage.open(key)


def test_watching_reads_each_part_once_and_ends_with_the_run(started: Started):
    counting = Counting(started.job.ledger.storage)
    run = replace(open_finished_run(started.job.ledger.storage), storage=counting)  # pyright: ignore[reportArgumentType]
    seen: list[int] = []
    for status in StatusReader(run, started.clock).watch(interval=0):
        seen.append(status.shards_done)
        started.work(2)
    assert seen == [0, 2, 4, 5]
    assert sorted(counting.opened) == [masks_key(f"{number:05d}") for number in range(5)]


def test_shards_are_ordered_by_number_when_names_have_more_digits(started: Started):
    def shards() -> Iterator[Shard]:
        for index in (100000, 99999):
            yield replace(started.plan[0], index=index)

    run_local(started.job, shards(), lambda _: None)
    assert [part.part for part in started.status().parts] == ["99999", "100000"]
