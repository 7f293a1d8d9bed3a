"""Several drivers on one output: each has its own order, and together they do little more than one alone."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from maskmill.pipeline import cluster
from maskmill.pipeline.finished import open_finished_run
from maskmill.pipeline.ledger import RUN_KEY, Identity, open_run
from maskmill.pipeline.plan import Plan
from maskmill.pipeline.records import Shard
from maskmill.pipeline.sources import open_source
from maskmill.pipeline.storage import LocalStorage, Skip, StoredObject, open_storage
from maskmill.pipeline.verify import verify
from maskmill.pipeline.walk import Walk
from maskmill.pipeline.worker import run_local
from tests.fakes import FakeEngine, picture
from tests.runs import begin

IMAGES = 120
PER_SHARD = 2
DRIVER = "import sys; from tests.pipeline.test_walk import drive; drive(*sys.argv[1:])"


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Sixty shards of two images."""
    (tmp_path / "photographs").mkdir()
    for number in range(IMAGES):
        (tmp_path / "photographs" / f"{number:03d}.png").write_bytes(picture(number))
    _, plan = begin(tmp_path / "photographs", tmp_path / "planned", images_per_shard=PER_SHARD)
    return plan


def indices(shards: Sequence[Shard]) -> list[int]:
    return [shard.index for shard in shards]


def test_lone_driver_that_begins_a_run_takes_the_shards_in_order(plan: Plan):
    assert list(Walk(plan, set, from_start=True)) == list(plan)


@pytest.mark.parametrize("seed", range(20))
def test_every_shard_comes_once_wherever_a_walk_begins(plan: Plan, seed: int):
    left = plan.without({f"{index:05d}" for index in range(0, 60, 7)})
    walk = Walk(left, set, from_start=False, seed=seed)
    assert len(walk) == len(left)
    assert sorted(indices(list(walk))) == indices(list(left))
    assert walk.skipped == 0


def test_walks_begin_at_different_places_in_the_second_half(plan: Plan):
    firsts = [next(Walk(plan, set, from_start=False, seed=seed)).index for seed in range(40)]
    assert len(set(firsts)) > 15
    assert min(firsts) >= 30


def test_walk_jumps_over_what_another_driver_has_committed(plan: Plan):
    theirs = {f"{index:05d}" for index in range(3, 50)}
    walk = Walk(plan, lambda: theirs, from_start=True, seed=0)
    assert [next(walk).index for _ in range(3)] == [0, 1, 2]
    assert next(walk).index == 3, "nothing has told it of the other driver yet"
    walk.jump()
    rest = indices(list(walk))
    assert rest[0] >= 55, "the second half of the longest gap"
    assert sorted(rest) == list(range(50, 60))
    assert walk.skipped == 46


def test_walk_jumps_when_it_comes_to_a_shard_of_another_driver(plan: Plan):
    walk = Walk(plan, lambda: {"00040"}, from_start=False, seed=0)
    walk.jump()  # looks, and knows of 40 from now on
    taken = indices([next(walk) for _ in range(59)])
    assert sorted([*taken, 40]) == list(range(60))
    assert all(after != 41 for before, after in itertools.pairwise(taken) if before == 39)


def test_nothing_is_left_when_other_drivers_have_committed_everything(plan: Plan):
    everything = {shard.name for shard in plan} | {"99999"}
    walk = Walk(plan, lambda: everything, from_start=True)
    next(walk)
    walk.jump()
    assert list(walk) == []
    assert walk.skipped == 59
    assert list(Walk(plan.without(everything), set, from_start=False)) == []


@pytest.mark.parametrize("drivers", [2, 3])
def test_drivers_of_the_same_speed_do_little_more_than_one(plan: Plan, drivers: int):
    """In each round every driver does a shard. They commit at the end of the round, one after the other."""
    work: list[int] = []
    for trial in range(50):
        committed: set[str] = set()
        walks = [Walk(plan, committed.copy, from_start=n == 0, seed=100 * trial + n) for n in range(drivers)]
        work.append(0)
        while len(committed) < 60:
            taken = [(walk, _next_to_do(walk, committed)) for walk in walks]
            for walk, shard in taken:
                work[-1] += shard is not None
                if shard and shard.name in committed:
                    walk.jump()
                elif shard:
                    committed.add(shard.name)
    assert sum(work) / len(work) <= 1.05 * 60
    assert max(work) <= 1.15 * 60


def _next_to_do(walk: Walk, committed: set[str]) -> Shard | None:
    """A worker only looks at a shard that is committed, and its driver hears of it."""
    for shard in walk:
        if shard.name not in committed:
            return shard
        walk.jump()
    return None


# As processes.


def drive(folder: str, seconds: str, wait: str, on_ray: str) -> None:
    """A driver of the run in `folder`, from `wait` seconds after the file `go` exists. An image takes `seconds`."""
    path = Path(folder)
    engine = FakeEngine(path, float(seconds))
    (path / f"ready-{os.getpid()}").touch()
    while not (path / "go").exists():
        time.sleep(0.01)
    time.sleep(float(wait))
    job, plan = begin(path / "photographs", path / "out", images_per_shard=PER_SHARD, engine=engine)
    left = plan.without(job.ledger.committed())
    if on_ray:
        cluster.run(job, left, lambda _: None, device="cpu")
    else:
        run_local(job, Walk(left, job.ledger.committed, job.ledger.is_new), lambda _: None)


def share(folder: Path, drivers: int, apart: float, seconds: float, on_ray: bool = False) -> Counter[str]:
    """Runs so many drivers that begin `apart` seconds from each other. Returns the number of images by worker."""
    running: list[subprocess.Popen[bytes]] = []
    for number in range(drivers):
        arguments = [str(folder), str(seconds), str(number * apart), "ray" if on_ray else ""]
        running.append(subprocess.Popen([sys.executable, "-c", DRIVER, *arguments]))
    while len(list(folder.glob("ready-*"))) < drivers:
        assert all(driver.poll() is None for driver in running)
        time.sleep(0.05)
    (folder / "go").touch()
    assert [driver.wait(500) for driver in running] == [0] * drivers
    return Counter((folder / "generated").read_text().split())


def assert_complete(folder: Path) -> None:
    storage = open_storage(str(folder / "out"))
    assert [check.offences for check in verify(storage) if check.offences] == []
    assert open_finished_run(storage).totals().images == IMAGES


@pytest.mark.slow
@pytest.mark.usefixtures("plan")
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("drivers", "apart"), [(2, 0.0), (2, 5.0), (3, 0.0), (3, 2.0)])
def test_processes_on_one_output_share_the_work(tmp_path: Path, drivers: int, apart: float):
    inferred = share(tmp_path, drivers, apart, seconds=0.2)
    assert_complete(tmp_path)
    assert len(inferred) == drivers, "each has done some"
    assert inferred.total() <= 1.15 * IMAGES


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("plan")
def test_clusters_on_one_output_share_the_work(tmp_path: Path):
    inferred = share(tmp_path, drivers=2, apart=15.0, seconds=0.6, on_ray=True)
    assert_complete(tmp_path)
    assert len(inferred) >= 2
    assert inferred.total() <= 1.15 * IMAGES


class SlowListing(LocalStorage):
    """Another driver begins the run between two requests of this one."""

    def list(self, prefix: str = "", skip: Skip = lambda key: False) -> Iterator[StoredObject]:
        begin(self.root.parent / "photographs", self.root, images_per_shard=PER_SHARD)
        return super().list(prefix, skip)


@pytest.mark.usefixtures("plan")
def test_output_is_not_foreign_when_another_driver_begins_the_run_at_the_same_time(tmp_path: Path):
    storage = SlowListing(tmp_path / "out")
    storage.make()
    job, _ = begin(tmp_path / "photographs", tmp_path / "other")
    assert job.ledger.is_new
    identity = Identity.from_json((tmp_path / "other" / RUN_KEY).read_text())
    ledger, plan = open_run(storage, identity, open_source(str(tmp_path / "photographs")), PER_SHARD)
    assert not ledger.is_new
    assert len(plan) == IMAGES / PER_SHARD
