"""Runs killed at every step, in the midst of every write and at any instant, end like one that was left in peace."""

from __future__ import annotations

import itertools
import random
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from maskmill.pipeline.storage import open_storage
from maskmill.pipeline.verify import verify
from maskmill.pipeline.worker import process_shard
from tests.fakes import FAIL, picture
from tests.kills import Objects, differences, kill_points, killed_after, objects, start, strangers, was_killed
from tests.runs import begin, retry, run

AT_RANDOM = 20  # kills


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five in three shards: c cannot be decoded, d fails in the engine."""
    folder = tmp_path_factory.mktemp("photographs")
    for seed, name in enumerate("abcde"):
        (folder / f"{name}.png").write_bytes(picture(seed, FAIL if name == "d" else (0, 0, 0)))
    (folder / "c.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def undisturbed(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Objects:
    """What a run over the photographs makes."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    run(photographs, out)
    return seen(out)


@pytest.fixture
def run_to_retry(tmp_path: Path) -> Path:
    """A run of three shards, two of which have failed images, which would not fail any more."""
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for seed, name in enumerate("abcdef"):
        (photographs / f"{name}.png").write_bytes(picture(seed) if name not in "adf" else b"")
    run(photographs, tmp_path / "out")
    for seed, name in enumerate("abcdef"):
        (photographs / f"{name}.png").write_bytes(picture(seed))
    return tmp_path / "out"


def seen(out: Path) -> Objects:
    return objects(open_storage(str(out))) if out.exists() else {}


def offences(out: Path) -> list[str]:
    return [offence for check in verify(open_storage(str(out))) for offence in check.offences]


def places(folder: Path, prepare: Callable[[Path], object] = lambda place: None) -> Iterator[Path]:
    """Outputs, one after the other, each gone when the next is asked for."""
    for number in itertools.count():
        place = folder / f"{number}" / "out"
        place.parent.mkdir()
        prepare(place)
        yield place
        shutil.rmtree(place.parent)


# One kill, everywhere.


@pytest.mark.parametrize(("torn", "at_least"), [(None, 40), (0, 8), (700, 7)])
def test_run_ends_like_one_left_in_peace_when_it_is_killed_at_any_step(
    photographs: Path, undisturbed: Objects, tmp_path: Path, torn: int | None, at_least: int
):
    points = 0
    for point, out in kill_points(partial(run, photographs), places(tmp_path), torn):
        assert strangers(seen(out), undisturbed) == [], f"seen after the kill at {point}"
        run(photographs, out)
        assert differences(seen(out), undisturbed) == [], f"after the kill at {point} and a resumption"
        points += 1
    assert points >= at_least


@pytest.mark.parametrize("torn", [None, 700])
def test_retry_ends_like_one_left_in_peace_when_it_is_killed_at_any_step(
    run_to_retry: Path, tmp_path: Path, torn: int | None
):
    before = seen(run_to_retry)
    undisturbed = tmp_path / "undisturbed"
    shutil.copytree(run_to_retry, undisturbed)
    assert [shard.name for shard in retry(undisturbed)] == ["00000-retry-1", "00001-retry-1", "00002-retry-1"]
    after = seen(undisturbed)
    assert offences(undisturbed) == []
    points = 0
    copy = partial(shutil.copytree, run_to_retry)
    for point, out in kill_points(retry, places(tmp_path, copy), torn):
        assert strangers(seen(out), before, after) == [], f"seen after the kill at {point}"
        image_ids = pq.read_table(out / "images")["image_id"].to_pylist()
        assert len(set(image_ids)) == len(image_ids), f"seen after the kill at {point}"
        retry(out)
        assert differences(seen(out), after) == [], f"after the kill at {point} and another retry"
        points += 1
    assert points >= (4 if torn else 40)


# Many kills, anywhere.


def test_run_ends_like_one_left_in_peace_when_it_is_killed_again_and_again(
    photographs: Path, undisturbed: Objects, tmp_path: Path
):
    out, instants, killed = tmp_path / "out", random.Random(5), 0
    for number in range(AT_RANDOM):
        # Further and further on, so that each kill hits work of its own.
        killed += killed_after(instants.uniform(0, 0.01 * number), partial(run, photographs, out))
        assert strangers(seen(out), undisturbed) == [], f"seen after kill {number}"
    run(photographs, out)
    assert differences(seen(out), undisturbed) == []
    assert offences(out) == []
    assert killed > AT_RANDOM / 4


def test_run_ends_like_one_left_in_peace_when_another_on_the_same_output_is_killed(
    photographs: Path, undisturbed: Objects, tmp_path: Path
):
    instants = random.Random(6)
    for out in itertools.islice(places(tmp_path), 6):
        other = start(partial(run, photographs, out))
        killed_after(instants.uniform(0, 0.3), partial(run, photographs, out))
        assert not was_killed(other)
        assert differences(seen(out), undisturbed) == []
        assert offences(out) == []


# Nobody is killed, but there are too many.


def test_two_runs_at_once_on_one_output_make_what_one_makes(photographs: Path, undisturbed: Objects, tmp_path: Path):
    for out in itertools.islice(places(tmp_path), 4):
        for process in [start(partial(run, photographs, out)) for _ in range(2)]:
            assert not was_killed(process)
        assert differences(seen(out), undisturbed) == []
        assert offences(out) == []


def test_two_retries_at_once_on_one_output_make_what_one_makes(run_to_retry: Path, tmp_path: Path):
    undisturbed = tmp_path / "undisturbed"
    shutil.copytree(run_to_retry, undisturbed)
    retry(undisturbed)
    for out in itertools.islice(places(tmp_path, partial(shutil.copytree, run_to_retry)), 4):
        for process in [start(partial(retry, out)) for _ in range(2)]:
            assert not was_killed(process)
        assert differences(seen(out), seen(undisturbed)) == []
        assert offences(out) == []


@pytest.mark.parametrize("steps", [1, 3, 6])
def test_worker_that_was_given_up_on_changes_nothing_when_it_finishes_late(
    photographs: Path, undisturbed: Objects, tmp_path: Path, steps: int
):
    out = tmp_path / "out"
    job, plan = begin(photographs, out)
    zombies = [process_shard(job, job.make_engine(), shard) for shard in plan]
    for zombie in zombies:
        list(itertools.islice(zombie, steps))
    run(photographs, out)
    for zombie in zombies:
        list(zombie)
    assert differences(seen(out), undisturbed) == []
    assert offences(out) == []
