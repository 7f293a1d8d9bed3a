"""Machines, workers and drivers that die on a cluster of several machines, and a worker that takes all the memory."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from maskmill.pipeline import cluster
from maskmill.pipeline.storage import LocalStorage, open_storage
from maskmill.pipeline.summary import read_summaries
from maskmill.pipeline.table import read_parquet
from testing.ray_cluster import this_machine
from tests.fakes import HOG, HOG_BYTES, KILL_ONCE, LOSE_DEVICE, WAIT, FakeEngine, picture, poison_decoder
from tests.machines import SHARD, machines, start_driver
from tests.runs import begin
from tests.soak import soak
from tests.waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def workers_that_worked(folder: Path) -> Counter[str]:
    generated = folder / "generated"
    return Counter(generated.read_text().split() if generated.exists() else ())


def image_rows(folder: Path) -> list[dict[str, Any]]:
    storage = open_storage(str(folder / "out"))
    tables = [read_parquet(storage.read(item.key)).to_pylist() for item in storage.list("images/")]
    return [row for rows in tables for row in rows]


@pytest.mark.parametrize("notice", [False, True])
def test_machines_that_come_are_used_and_machines_that_go_blame_nobody(tmp_path: Path, notice: bool):
    (tmp_path / "photographs").mkdir()
    for number in range(80):
        command = WAIT if number == 20 else (0, 0, 0)
        (tmp_path / "photographs" / f"{number:03d}.png").write_bytes(picture(number, command))
    log = tmp_path / "driver.log"
    with machines(1) as cluster:
        driver = start_driver(cluster.address, tmp_path / "photographs", str(tmp_path / "out"), 0.01, log)
        wait_until(lambda: len(workers_that_worked(tmp_path)) == 1)
        cluster.add()
        wait_until(lambda: len(workers_that_worked(tmp_path)) == 2)
        if notice:
            cluster.give_notice(0, seconds=1)
        cluster.kill_machine(0)
        wait_until(lambda: "a machine is gone" in log.read_text() or "a machine will be removed" in log.read_text())
        (tmp_path / "released").touch()
        assert driver.wait(120) == 0, log.read_text()
    assert Counter((row["status"], row["attempt"]) for row in image_rows(tmp_path)) == {("ok", 1): 80}
    (summary,) = read_summaries(open_storage(str(tmp_path / "out")))
    assert (summary["preemptions"], summary["retries"], summary["images"]["ok"]) == (1, 0, 80)
    assert summary["gpu_seconds"] == summary["worker_seconds"] > 0


def test_draining_machine_finishes_its_shard_gets_no_other_and_is_free_to_go(tmp_path: Path):
    (tmp_path / "photographs").mkdir()
    for number in range(80):
        command = WAIT if number == 4 else (0, 0, 0)  # of the first shard
        (tmp_path / "photographs" / f"{number:03d}.png").write_bytes(picture(number, command))
    log = tmp_path / "driver.log"
    with machines(1) as cluster:
        driver = start_driver(cluster.address, tmp_path / "photographs", str(tmp_path / "out"), 0.1, log)
        wait_until(lambda: len(workers_that_worked(tmp_path)) == 1)
        (draining,) = workers_that_worked(tmp_path)
        cluster.give_notice(0, seconds=3600)
        wait_until(lambda: "a machine will be removed" in log.read_text())
        cluster.add()
        wait_until(lambda: len(workers_that_worked(tmp_path)) == 2)
        (tmp_path / "released").touch()
        assert driver.wait(120) == 0, log.read_text()
        wait_until(lambda: not cluster.is_alive(0))
    assert Counter((row["status"], row["attempt"]) for row in image_rows(tmp_path)) == {("ok", 1): 80}
    (summary,) = read_summaries(open_storage(str(tmp_path / "out")))
    assert (summary["preemptions"], summary["retries"], summary["images"]["ok"]) == (1, 0, 80)
    # Its shard, and at most the one that it had before the notice and that waited for the device: 2 of 10.
    assert SHARD <= workers_that_worked(tmp_path)[draining] <= 2 * SHARD


def test_machine_without_shards_is_free_to_go_before_the_run_ends_and_all_are_after_it(tmp_path: Path):
    (tmp_path / "photographs").mkdir()
    for number in range(12):
        # After a failed attempt no second worker gets a copy of the first shard.
        command = {0: KILL_ONCE, 1: WAIT}.get(number, (0, 0, 0))
        (tmp_path / "photographs" / f"{number:03d}.png").write_bytes(picture(number, command))
    log = tmp_path / "driver.log"
    with machines(2) as cluster:
        driver = start_driver(cluster.address, tmp_path / "photographs", str(tmp_path / "out"), 0.01, log)
        wait_until(lambda: "attempt 1 failed" in log.read_text())
        removed: list[int] = []
        wait_until(lambda: bool(removed.extend(filter(cluster.remove_if_idle, range(2))) or removed))
        assert driver.poll() is None, "the other machine works on"
        (tmp_path / "released").touch()
        assert driver.wait(120) == 0, log.read_text()
        (other,) = {0, 1} - {*removed}
        assert cluster.remove_if_idle(other)
    assert Counter(row["status"] for row in image_rows(tmp_path)) == {"ok": 12}


@dataclass(frozen=True)
class Witness(LocalStorage):
    """Writes down when a shard begins (it looks for its part) and when it has ended (its images are published)."""

    def exists(self, key: str) -> bool:
        self._note("begins", key)
        return super().exists(key)

    def put(self, key: str, data: bytes) -> None:
        super().put(key, data)
        self._note("ends", key)

    def _note(self, what: str, key: str) -> None:
        with (self.root.parent / "witness").open("a") as stream:
            stream.write(f"{os.getpid()} {what} {PurePosixPath(key).name}\n")


def test_shard_that_is_done_again_isolated_is_alone_at_its_worker(tmp_path: Path):
    (tmp_path / "photographs").mkdir()
    for number in range(7):
        data = picture(number, LOSE_DEVICE if number == 5 else (0, 0, 0))
        (tmp_path / "photographs" / f"{number}.png").write_bytes(data)
    engine = FakeEngine(tmp_path, seconds=0.2)
    job, plan = begin(tmp_path / "photographs", tmp_path / "out", images_per_shard=1, engine=engine)
    ledger = replace(job.ledger, storage=Witness(tmp_path / "out"))
    with this_machine(num_cpus=2):  # one worker
        cluster.run(replace(job, ledger=ledger), plan, lambda _: None)
    assert {row["image_id"] for row in image_rows(tmp_path) if row["attempt"] == 2} == {"5.png"}
    begins: dict[tuple[str, str], int] = {}
    ends: dict[tuple[str, str], int] = {}
    for moment, (process, what, part) in enumerate(map(str.split, (tmp_path / "witness").read_text().splitlines())):
        if what == "begins":
            begins.setdefault((process, part), moment)
        else:
            ends[process, part] = moment
    (again,) = (shard for shard in ends if shard[1] == "part-00005.parquet")
    beside = [shard for shard in ends if shard[0] == again[0] and shard != again]
    assert [shard for shard in beside if begins[shard] < ends[again] and begins[again] < ends[shard]] == []


def test_nothing_is_lost_or_doubled_when_workers_machines_and_drivers_die_at_random(tmp_path: Path):
    toll = soak(tmp_path, kills=6, seed=3, n_images=300, seconds=0.02)
    assert toll.harmless, str(toll)
    assert toll.kills.total() == 6
    assert toll.images == 300 * toll.runs


def test_image_that_takes_all_the_memory_is_quarantined(tmp_path: Path):
    (tmp_path / "photographs").mkdir()
    for number in range(5):
        (tmp_path / "photographs" / f"{number}.png").write_bytes(picture(number, HOG if number == 3 else (0, 0, 0)))
    job, plan = begin(tmp_path / "photographs", tmp_path / "out", images_per_shard=5)
    total, used = memory()
    # Ray then ends the process that takes the most, as the kernel does somewhat later.
    threshold = (used + HOG_BYTES / 2) / total
    with this_machine(num_cpus=2, memory_usage_threshold=threshold, memory_monitor_refresh_ms=100):
        cluster.run(replace(job, decode=poison_decoder), plan, lambda _: None)
    assert {row["image_id"]: row["error"] for row in image_rows(tmp_path)} == {
        **dict.fromkeys(["0.png", "1.png", "2.png", "4.png"]),
        "3.png": "2 workers failed at this image: its machine ran out of memory",
    }


def memory() -> tuple[int, int]:
    """Bytes in all, and bytes used."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    total, available = (int(lines[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    return total, total - available
