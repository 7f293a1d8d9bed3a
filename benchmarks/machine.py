"""What benchmarks share: the description of the machine and the software, the results directory, CPU times."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = (
    "torch", "numpy", "pillow", "opencv-python-headless", "pycocotools", "pyarrow", "duckdb", "numba", "triton",
    "segment-anything", "transformers", "torchvision",
)  # fmt: skip


def describe_machine(device: torch.device) -> dict[str, str | float]:
    """Returns the commit, hardware and versions. Call it before the measurement, because it reads the load average."""
    return {
        "commit": _commit(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "cpu": f"{_cpu_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        # A value well above 0 means that other processes were running.
        "load average before": round(os.getloadavg()[0], 1),
        "versions": ", ".join([f"Python {platform.python_version()}", *_versions()]),
    }


def _commit() -> str:
    try:
        done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def _versions() -> Iterator[str]:
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            yield f"{package} {version(package)}"


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def cpu_seconds(ways: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """The median CPU seconds of each function. They take turns, so that a slow machine slows all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            started = time.process_time()
            way()
            seconds[name].append(time.process_time() - started)
    return {name: median(times) for name, times in seconds.items()}
