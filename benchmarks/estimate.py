"""Compares the estimate of a probe with the run that it is for: 500 small photographs, with the embedded model.

    python -m benchmarks.estimate                                 # 500 images, 8x8 points: 10 minutes on two idle cores
    python -m benchmarks.estimate --images 100 --probe 32

A probe before the run and one after it, because other programs may change the speed of the machine. CPU seconds depend
less on them than the time on the clock. `--times FILE` writes those of each image, for `benchmarks.cluster`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import skimage.data
import torch
from PIL import Image

from benchmarks.machine import RESULTS
from maskmill.model.checkpoint import load_model
from maskmill.pipeline import cluster
from maskmill.pipeline.config import RunConfig, generator_config
from maskmill.pipeline.engine import GeneratorFactory
from maskmill.pipeline.estimate import Interval, Sample, duration, seconds_per_image
from maskmill.pipeline.finished import open_finished_run
from maskmill.pipeline.inventory import take_inventory
from maskmill.pipeline.job import Job
from maskmill.pipeline.ledger import Identity, open_run
from maskmill.pipeline.local_ray import WORKER_NICENESS
from maskmill.pipeline.placement import CPUS_PER_WORKER
from maskmill.pipeline.plan import shard_size
from maskmill.pipeline.probe import run_probe
from maskmill.pipeline.sources import open_source
from maskmill.pipeline.storage import open_storage
from testing.ray_cluster import this_machine

SAMPLE_SHARDS = 16
PHOTOGRAPHS = (
    "astronaut",
    "coffee",
    "chelsea",
    "rocket",
    "coins",
    "camera",
    "immunohistochemistry",
    "hubble_deep_field",
)


@dataclass(frozen=True)
class NotedCpu:
    """The time of the day. Appends the CPU time of its process to a file at each call."""

    path: Path

    def __call__(self) -> float:
        with self.path.open("a") as stream:
            stream.write(f"{time.process_time()}\n")
        return time.time()


@dataclass(frozen=True)
class Row:
    """A row of the table: the time of a run, estimated or measured."""

    what: str
    seconds: Interval
    cpu_seconds: float


def main() -> None:
    """Runs probe, run and probe, prints the comparison and writes it to results/."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--probe", type=int, default=64, help="images")
    parser.add_argument("--points-per-side", type=int, default=8)
    parser.add_argument("--times", type=Path, help="write the CPU milliseconds of each image of the run to this file")
    parser.add_argument("--output", type=Path, help="default: results/<date>-estimate.md")
    arguments = parser.parse_args()
    torch.set_num_threads(CPUS_PER_WORKER)
    cv2.setNumThreads(CPUS_PER_WORKER)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="maskmill-estimate-") as folder:
        source = Path(folder, "photographs")
        write_photographs(source, arguments.images)
        rows, times = _measure(source, Path(folder, "out"), arguments.probe, arguments.points_per_side)
    if arguments.times:
        arguments.times.write_text(json.dumps([round(1000 * seconds) for seconds in times]) + "\n")
    report = _report(rows, arguments, load)
    print(report)
    output = arguments.output or RESULTS / f"{datetime.date.today()}-estimate.md"
    output.write_text(report)


def write_photographs(folder: Path, count: int) -> None:
    """Random parts of the photographs of scikit-image, with sides of 120 to 320 pixels, as JPEG files."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(count):
        photograph = getattr(skimage.data, PHOTOGRAPHS[number % len(PHOTOGRAPHS)])()
        height, width = random.integers(120, 300, 2)
        top, left = (
            int(random.integers(0, side - part + 1))
            for side, part in zip(photograph.shape, (height, width), strict=False)
        )
        Image.fromarray(photograph[top : top + height, left : left + width]).save(folder / f"{number:04d}.jpg")


def _measure(source: Path, out: Path, probed: int, points_per_side: int) -> tuple[list[Row], list[float]]:
    """The rows of the table, and the CPU seconds of each image."""
    config = RunConfig("mini", "mini", generator_config("mini", {"points_per_side": points_per_side}), "exact")
    opened = open_source(str(source))
    sha256 = load_model("mini", None).sha256
    ledger, plan = open_run(open_storage(str(out), make=True), Identity(opened.uri, sha256, config), opened)
    job = Job(opened, ledger, GeneratorFactory(config, None, sha256, "cpu"), config.decoding)
    images = plan.n_images or 0

    def probe(name: str) -> Row:
        noted = out.parent / name
        inventory = take_inventory(opened, shard_size(opened), SAMPLE_SHARDS)
        sample = run_probe(replace(job, wall_clock=NotedCpu(noted)), inventory.sample, probed).sample
        began, ended = np.loadtxt(noted)[2:].reshape(-1, 2).T  # the first two calls: the image that warms up
        estimate = duration(seconds_per_image(sample), images, len(plan), workers=1)
        return Row(name, estimate, float((ended - began).sum()) / sample.images * images)

    before = probe("estimate before the run")
    noted = out.parent / "run"
    os.environ.setdefault(*WORKER_NICENESS)  # as in a run of `maskmill generate`
    with this_machine(num_cpus=CPUS_PER_WORKER):
        cluster.run(
            replace(job, clock=time.process_time, wall_clock=NotedCpu(noted)), plan, lambda _: None, device="cpu"
        )
    footers = [footer for _, footer in open_finished_run(ledger.storage).footers()]
    works = [footer.work for footer in footers if footer.work]
    seconds = max(work.ended for work in works) - min(work.began for work in works)
    taken = Row("run", Interval(seconds, seconds, seconds), float(np.ptp(np.loadtxt(noted))))
    return [before, taken, probe("estimate after the run")], list(Sample.of(footers).image_seconds)


def _report(rows: list[Row], arguments: argparse.Namespace, load: float) -> str:
    run = rows[1]
    points = arguments.points_per_side
    lines = [
        "# The estimate of a probe against the run",
        "",
        f"{datetime.date.today()}, {os.cpu_count()} cores, load average before {load:.1f}.",
        f"Python {platform.python_version()}, torch {torch.__version__}.",
        f"{arguments.images} photographs of 120 to 300 pixels, `mini`, {points}x{points} points, one worker.",
        f"Probes of {arguments.probe} images.",
        "",
        "| what | seconds | of the run | CPU seconds | of the run |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        mean, low, high = row.seconds.mean, row.seconds.low, row.seconds.high
        interval = "" if low == high else f" ({low:.0f} to {high:.0f})"
        shares = mean / run.seconds.mean, row.cpu_seconds / run.cpu_seconds
        cells = [row.what, f"{mean:.0f}{interval}", f"{shares[0]:.2f}", f"{row.cpu_seconds:.0f}", f"{shares[1]:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "Seconds: from the first image on the device to the last one, by the clock.",
        "CPU seconds: of the process of the worker in the same time.",
        "For a probe: of its process while it measured, for as many images as the run has.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
