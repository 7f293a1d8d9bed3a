"""Measures the driver of a run with up to 1000 simulated workers, and computes what SA-1B would cost.

    python -m benchmarks.cluster                                   # 8, 64, 256 and 1000 workers, 100,000 shards
    python -m benchmarks.cluster --workers 1000 --shards 10000     # one size, faster

The driver, the schedule, the walk, the plan and the ledger are those of a real run. The workers are simulated in
virtual time (`simulation.py`), so a run of days takes minutes. The CPU time of the driver is measured, and that of the
calls of Ray, with real streams of a local Ray cluster. Each size runs in a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import io
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import ray
from PIL import Image

from benchmarks import sa1b
from benchmarks.feeding import SleepingDevice
from benchmarks.machine import RESULTS
from benchmarks.planning import SyntheticKeys
from benchmarks.simulation import CallCosts, MemoryStorage, Scenario, SimulatedWorkers
from maskmill.pipeline import cluster
from maskmill.pipeline.config import DEFAULT_DECODING, PRESETS, RunConfig
from maskmill.pipeline.job import Job
from maskmill.pipeline.ledger import Identity, Ledger, open_run
from maskmill.pipeline.progress import Attempt, Progress
from maskmill.pipeline.records import Shard
from maskmill.pipeline.sources import ImageFolder
from maskmill.pipeline.worker import process_shard
from testing.ray_cluster import this_machine

ROOT = Path(__file__).parent
SERVICE_TIMES = ROOT / "service_times.json"  # CPU milliseconds per image, written by `benchmarks.estimate --times`
IMAGES_PER_SHARD = 64
NOTES = """\
- Utilisation: the share of the time of all machines that went into images of committed shards. A machine counts from
  the start of its worker to the end of it. The rest: starting workers, workers without a shard, shards that two workers
  processed, and shards that a lost worker had begun.
- Tail: from when the driver ended the first worker, because there were no more shards for it, to the end of the run.
- A worker takes {scenario.start_seconds:g} s to start. A machine is lost after
  {scenario.hours_between_losses:g} hours on average and replaced after {scenario.replacement_seconds:g} s. One of
  {one_in:,.0f} images ends its worker each time. Image times: CPU times of a real run (`service_times.json`), scaled.
- Our code: the CPU time of the driver, measured. Calls of Ray: measured with 500 streams of a local cluster, per round
  and open stream {waiting:.1f} us, per list of records {record_list:.0f} us, per shard {shard:.0f} us.
- Cores: both together, per second of the run. Not included: the progress bar, and Ray's raylet and GCS, which are other
  processes.
- Memory: of the driver and the simulation, above that after the imports.
- Requests per image: {source:g} to the source; per shard {reads:g} reads and {writes:g} writes of the output; and those
  of the driver.
"""


@dataclass(frozen=True)
class Measured:
    """What one size of cluster gave. Times are seconds."""

    workers: int
    shards: int
    images: int
    hours: float  # virtual
    utilisation: float  # share of the time of all machines that went into images of committed shards
    starting: float  # shares of the same time: from the start of workers to their first image
    idle: float  # without a shard
    repeated: float  # images that another worker committed first
    tail_seconds: float  # from when the driver ended the first worker, because it had no more shards, to the end
    losses: int  # machines
    retries: int
    quarantined: int
    driver_ms_per_shard: float  # CPU of our code
    call_ms_per_shard: float  # CPU of the calls of Ray
    cores: float  # of the driver's CPU, both together
    memory_mb: float  # of driver and simulation, above the imports
    driver_reads: int  # requests to the output
    driver_writes: int

    @property
    def driver_requests(self) -> int:
        return self.driver_reads + self.driver_writes


def simulate(scenario: Scenario, shards: int, images_per_shard: int, costs: CallCosts) -> Measured:
    """One run of the real driver with simulated workers."""
    started = _resident()
    storage = MemoryStorage()
    images = shards * images_per_shard
    source = ImageFolder(SyntheticKeys(ROOT, images), str(ROOT))
    identity = Identity(source.uri, "", RunConfig("mini", "mini", PRESETS["mini"]))
    ledger, plan = open_run(storage, identity, source, images_per_shard)
    workers = SimulatedWorkers(scenario, storage, costs)
    counts = Counter[str]()

    def count(progress: Progress) -> None:
        counts[progress.status or ""] += 1

    job = Job(source, ledger, _no_engine, DEFAULT_DECODING)
    cluster.drive(workers, job, plan, count, lambda _: None, "cuda", 1800.0)
    assert counts.total() == images, f"{counts} of {images}"
    assert sum(key.startswith("masks/") for key in storage.objects) == shards
    summary = json.loads(storage.objects["_summary-0.json"])
    total = workers.machine_seconds
    return Measured(
        workers=scenario.workers,
        shards=shards,
        images=images,
        hours=workers.now() / 3600,
        utilisation=workers.useful_seconds / total,
        starting=workers.starting_seconds / total,
        idle=workers.idle_seconds / total,
        repeated=workers.repeated_seconds / total,
        tail_seconds=workers.now() - (workers.first_end or workers.now()),
        losses=workers.losses,
        retries=summary["retries"],
        quarantined=counts["quarantined"],
        driver_ms_per_shard=1000 * workers.driver_seconds / shards,
        call_ms_per_shard=1000 * workers.call_seconds / shards,
        cores=(workers.driver_seconds + workers.call_seconds) / workers.now(),
        memory_mb=(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - started) / 1e6,
        driver_reads=storage.requests["exists"] + storage.requests["read"],
        driver_writes=storage.requests["write"] + storage.requests["list"],
    )


def _no_engine() -> Any:
    raise NotImplementedError("simulated workers have no engine")


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def measure_calls(streams: int = 500, seconds: float = 15.0) -> CallCosts:
    """The CPU time that Ray takes in the process of a driver, with real streams of two workers on this machine."""
    records: list[Any] = [Progress(0, "000123/000123_deadbeef.jpg", step) for step in ("rle", "decode", "encode")]

    class Reporter:
        """Has many streams at once, each with a report every `period` seconds."""

        def __init__(self, period: float) -> None:
            self.period = period

        async def process(self, shard: Shard, attempt: Attempt) -> AsyncIterator[Any]:
            while True:
                yield records
                await asyncio.sleep(self.period)

    workers = cluster.RayWorkers(cast(Job, None))  # it starts no worker here
    shard = Shard(0, "s3://bucket/photos", tuple(f"000123/{number:03d}_deadbeef.jpg" for number in range(64)))
    with this_machine(num_cpus=2):

        def open_streams(period: float) -> tuple[Any, list[Any]]:
            reporter = ray.remote(Reporter).options(num_cpus=0, max_concurrency=2 * streams).remote(period)
            return reporter, [workers.process(reporter, shard, Attempt()) for _ in range(streams)]

        silent, pending = open_streams(1e6)
        for stream in pending:
            workers.next_records(stream)
        rounds, began = 200, time.process_time()
        for _ in range(rounds):
            workers.wait(pending, 0.0, 0.0)
        waiting = (time.process_time() - began) / rounds / streams
        workers.kill(silent)

        began = time.process_time()
        reporter, pending = open_streams(1.0)
        sent = time.process_time() - began
        received = rounds = 0
        began, deadline = time.process_time(), time.monotonic() + seconds
        while time.monotonic() < deadline:
            rounds += 1
            for stream in workers.wait(pending, 1.0, 0.1):
                workers.next_records(stream)
                received += 1
        used = time.process_time() - began
        workers.kill(reporter)
    return CallCosts(waiting, (used - rounds * streams * waiting) / received, sent / streams)


def count_requests(images: int = 16) -> tuple[float, float, float]:
    """Requests of a worker for one shard: to the source per image; reads and writes of the output per shard."""
    stream = io.BytesIO()
    Image.new("RGB", (32, 32)).save(stream, "PNG")
    pictures, out = MemoryStorage(), MemoryStorage()
    pictures.objects.update({f"{number}.png": stream.getvalue() for number in range(images)})
    source = ImageFolder(pictures, pictures.uri)
    (shard,) = source.plan(images)
    pictures.requests.clear()
    with tempfile.TemporaryDirectory() as folder:
        engine = SleepingDevice(Path(folder, "record"), seconds=0.0, host_seconds=0.0, at_once=1)
        job = Job(source, Ledger(out, ""), engine, DEFAULT_DECODING)
        list(process_shard(job, engine(), shard))
    return pictures.requests.total() / images, out.requests["exists"] + out.requests["read"], out.requests["write"]


def main() -> None:
    """Runs all sizes, prints the report and writes it to results/."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[8, 64, 256, 1000])
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--images-per-shard", type=int, default=IMAGES_PER_SHARD)
    parser.add_argument("--output", type=Path, help="default: results/<date>-cluster.md")
    parser.add_argument("--costs", help=argparse.SUPPRESS)  # used by the process of one size
    arguments = parser.parse_args()
    if arguments.costs:
        times = np.array(json.loads(SERVICE_TIMES.read_text()), np.float64)
        (workers,) = arguments.workers
        costs = CallCosts(**json.loads(arguments.costs))
        measured = simulate(Scenario(workers, times), arguments.shards, arguments.images_per_shard, costs)
        print(json.dumps(asdict(measured)))
        return
    costs = measure_calls()
    print(costs, file=sys.stderr)
    sizes = sorted(arguments.workers)
    with ThreadPoolExecutor(len(sizes)) as threads:
        rows = list(threads.map(lambda workers: _in_a_process(workers, arguments, costs), sizes))
    text = "\n".join(report(rows, Scenario(0, np.ones(1)), costs, count_requests())) + "\n"
    print(text)
    (arguments.output or RESULTS / f"{datetime.date.today()}-cluster.md").write_text(text)


def _in_a_process(workers: int, arguments: argparse.Namespace, costs: CallCosts) -> Measured:
    command = [sys.executable, "-m", "benchmarks.cluster", "--workers", str(workers), "--shards", str(arguments.shards)]
    command += ["--images-per-shard", str(arguments.images_per_shard), "--costs", json.dumps(asdict(costs))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    print(done.stdout.strip(), file=sys.stderr)
    return Measured(**json.loads(done.stdout))


def report(
    rows: Sequence[Measured], scenario: Scenario, costs: CallCosts, requests: tuple[float, float, float]
) -> Iterator[str]:
    """The result as lines of Markdown."""
    source, reads, writes = requests
    images_per_shard = rows[0].images // rows[0].shards
    load, python = os.getloadavg()[0], platform.python_version()
    yield "# The driver with up to 1000 workers, simulated"
    yield ""
    yield f"{datetime.date.today()}, {os.cpu_count()} cores, load average {load:.1f}, Python {python}."
    yield f"{rows[0].shards:,} shards of {images_per_shard} images, {scenario.shard_seconds:g} s each on average."
    yield "The workers are simulated in virtual time. Driver, schedule, walk, plan and ledger are those of a real run."
    yield ""
    yield from _table(
        [
            "workers",
            "hours",
            "utilisation",
            "starting",
            "idle",
            "repeated",
            "tail, s",
            "losses",
            "retries",
            "quarantined",
        ],
        [
            [
                *(str(row.workers), f"{row.hours:,.1f}"),
                *(f"{share:.2%}" for share in (row.utilisation, row.starting, row.idle, row.repeated)),
                *(f"{row.tail_seconds:.0f}", str(row.losses), str(row.retries), str(row.quarantined)),
            ]
            for row in rows
        ],
    )
    yield ""
    yield from _table(
        [
            "workers",
            "our code, ms per shard",
            "calls of Ray, ms per shard",
            "cores",
            "memory, MB",
            "requests per image",
        ],
        [
            [
                *(str(row.workers), f"{row.driver_ms_per_shard:.2f}", f"{row.call_ms_per_shard:.2f}"),
                *(f"{row.cores:.3f}", f"{row.memory_mb:.0f}"),
                f"{source + (reads + writes) / images_per_shard + row.driver_requests / row.images:.3f}",
            ]
            for row in rows
        ],
    )
    yield ""
    yield NOTES.format(
        scenario=scenario,
        one_in=1 / scenario.deadly_images,
        waiting=1e6 * costs.waiting,
        record_list=1e6 * costs.record_list,
        shard=1e6 * costs.shard,
        source=source,
        reads=reads,
        writes=writes,
    )
    yield "## SA-1B on paper"
    yield ""
    counted = sa1b.Requests(source, reads, writes, rows[-1].driver_reads, rows[-1].driver_writes)
    yield from sa1b.report(sa1b.Inputs(), {row.workers: row.utilisation for row in rows}, counted)


def _table(head: list[str], rows: list[list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + "---:|" * len(head)
    for row in rows:
        yield f"| {' | '.join(row)} |"


if __name__ == "__main__":
    main()
