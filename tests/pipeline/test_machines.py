"""Where workers are placed on a cluster of several machines, with GPUs by name only: fractions, labels, threads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from maskmill.pipeline import cluster
from maskmill.pipeline.errors import RunFailedError
from maskmill.pipeline.placement import LabelSelector
from tests.fakes import WAIT, FakeEngine, picture
from tests.machines import Machines, machines
from tests.runs import begin
from tests.waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SPOT, ON_DEMAND = ({"ray.io/market-type": market} for market in ("spot", "on-demand"))


@dataclass(frozen=True)
class PlacedEngine(FakeEngine):
    """Writes down where its worker is: the labels of the machine, GPU, CPUs reserved and threads of torch."""

    def __call__(self) -> PlacedEngine:
        context = ray.get_runtime_context()
        (labels,) = (node["Labels"] for node in ray.nodes() if node["NodeID"] == context.get_node_id())
        market, cpus = labels.get("ray.io/market-type", ""), context.get_assigned_resources().get("CPU", 0)
        gpus = ",".join(map(str, ray.get_gpu_ids()))
        with (self.folder / "places").open("a") as stream:
            stream.write(f"{market} GPU {gpus}, {cpus:g} CPUs, {torch.get_num_threads()} threads\n")
        return self


def run(
    folder: Path, machines: Machines, workers: int, gpus_per_worker: float = 1, labels: Sequence[LabelSelector] = ()
) -> Counter[str]:
    """Where the workers were. The run goes on until so many are at work."""
    (folder / "photographs").mkdir()
    for number in range(2 * workers):
        (folder / "photographs" / f"{number}.png").write_bytes(picture(number, WAIT))
    engine = PlacedEngine(folder, seconds=0.01)
    job, plan = begin(folder / "photographs", folder / "out", images_per_shard=1, engine=engine)

    def release() -> None:
        generated = folder / "generated"
        wait_until(lambda: generated.exists() and len(set(generated.read_text().split())) == workers)
        (folder / "released").touch()

    with ThreadPoolExecutor(1) as threads:
        released = threads.submit(release)
        cluster.run(
            job,
            plan,
            lambda _: None,
            address=machines.address,
            device="cuda",
            gpus_per_worker=gpus_per_worker,
            labels=labels,
        )
        released.result()
    return Counter((folder / "places").read_text().splitlines())


def test_worker_has_its_share_of_the_threads_of_its_machine_when_machines_differ(tmp_path: Path):
    """The CPUs of machines without a GPU do not count; Ray places a worker on each GPU."""
    with machines(0) as cluster:
        cluster.add(num_cpus=4, num_gpus=2)
        cluster.add(num_cpus=6, num_gpus=1)
        cluster.add(num_cpus=64, num_gpus=0)
        places = run(tmp_path, cluster, workers=3)
    assert places == {
        " GPU 0, 2 CPUs, 2 threads": 1,
        " GPU 1, 2 CPUs, 2 threads": 1,
        " GPU 0, 2 CPUs, 6 threads": 1,
    }


def test_gpu_has_two_workers_when_each_takes_half(tmp_path: Path):
    with machines(0) as cluster:
        cluster.add(num_cpus=8, num_gpus=2)
        places = run(tmp_path, cluster, workers=4, gpus_per_worker=0.5)
    assert places == {" GPU 0, 2 CPUs, 2 threads": 2, " GPU 1, 2 CPUs, 2 threads": 2}


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([SPOT], ["spot"]),
        ([SPOT, ON_DEMAND], ["spot", "on-demand"]),
        ([{"ray.io/market-type": "!spot"}], ["on-demand", ""]),
        ([SPOT, {}], ["spot", "on-demand", ""]),
    ],
)
def test_only_machines_with_the_labels_have_workers(tmp_path: Path, labels: list[LabelSelector], expected: list[str]):
    with machines(0) as cluster:
        for market in (SPOT, ON_DEMAND, None):
            cluster.add(labels=market)
        places = run(tmp_path, cluster, workers=len(expected), labels=labels)
    assert places == {f"{market} GPU 0, 1 CPUs, 1 threads": 1 for market in expected}


def test_run_is_refused_when_no_machine_has_the_labels(tmp_path: Path):
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "0.png").write_bytes(picture(0))
    job, plan = begin(tmp_path / "photographs", tmp_path / "out")
    with machines(0) as machine_of_one:
        machine_of_one.add(labels=SPOT)
        with pytest.raises(RunFailedError, match=r"no machine .* labels .* there are ray\.io/market-type=spot$"):
            cluster.run(job, plan, lambda _: None, address=machine_of_one.address, labels=[ON_DEMAND])


def test_workers_wait_for_machines_that_the_autoscaler_adds_when_their_number_is_given(tmp_path: Path):
    """A cluster without a machine has the requests of both workers, and uses the machines as they come."""
    (tmp_path / "photographs").mkdir()
    for number in range(4):
        (tmp_path / "photographs" / f"{number}.png").write_bytes(picture(number, WAIT))
    engine = PlacedEngine(tmp_path, seconds=0.01)
    job, plan = begin(tmp_path / "photographs", tmp_path / "out", images_per_shard=1, engine=engine)
    generated = tmp_path / "generated"

    def at_work() -> int:
        return len({*generated.read_text().split()}) if generated.exists() else 0

    with machines(0) as added, ThreadPoolExecutor(1) as threads:  # Ray starts machines in the main thread only
        options: dict[str, Any] = {"address": added.address, "device": "cuda", "n_workers": 2}
        running = threads.submit(cluster.run, job, plan, lambda _: None, **options)
        try:
            for number in (1, 2):
                added.add(num_cpus=3)
                wait_until(lambda: running.done() or at_work() == number)  # noqa: B023
        finally:
            (tmp_path / "released").touch()
        running.result()
    assert (tmp_path / "places").read_text().splitlines() == [" GPU 0, 0 CPUs, 3 threads"] * 2


@dataclass(frozen=True)
class UnequalEngine(FakeEngine):
    """Takes ten times as long on a machine with one CPU, and writes down the CPUs of the machine for each image."""

    def __call__(self) -> FakeEngine:
        here = ray.get_runtime_context().get_node_id()
        (resources,) = (node["Resources"] for node in ray.nodes() if node["NodeID"] == here)
        folder = self.folder / f"{resources['CPU']:g}"
        folder.mkdir(exist_ok=True)
        return FakeEngine(folder, self.seconds * (10 if resources["CPU"] == 1 else 1))


def test_faster_machine_does_more_of_the_work(tmp_path: Path):
    """Each worker asks for the next shard when it has finished one."""
    (tmp_path / "photographs").mkdir()
    for number in range(200):
        (tmp_path / "photographs" / f"{number:03d}.png").write_bytes(picture(number))
    engine = UnequalEngine(tmp_path, seconds=0.05)
    job, plan = begin(tmp_path / "photographs", tmp_path / "out", images_per_shard=2, engine=engine)
    with machines(0) as two_machines:
        two_machines.add(num_cpus=1)
        two_machines.add(num_cpus=2)
        cluster.run(job, plan, lambda _: None, address=two_machines.address, device="cuda")
    slow, fast = (len((tmp_path / cpus / "generated").read_text().split()) for cpus in "12")
    assert 0 < slow < fast / 3
