"""Measures the time and memory of `maskmill export` per format, on a synthetic run without images.

    python -m benchmarks.export                   # 10,000 images with 100 masks each: 1 million masks
    python -m benchmarks.export --images 1000 --format coco --format hf

Each export runs in a separate process. Its memory is the peak resident size of that process, imports included.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from maskmill.jobs.cli import main as maskmill
from maskmill.jobs.export import FormatName
from maskmill.pipeline.storage import open_storage
from testing.synthetic_runs import mask_pool, write_run

MASKS_PER_IMAGE = 100
HEIGHT, WIDTH = 768, 1024


@dataclass(frozen=True)
class Measurement:
    """One export."""

    seconds: float
    peak_mib: float
    bytes: int


def make_run(out: Path, images: int, masks_per_image: int = MASKS_PER_IMAGE) -> None:
    """A run of `images` synthetic images."""
    write_run(open_storage(str(out), make=True), images, masks_per_image, mask_pool(256, HEIGHT, WIDTH))


def measure(out: Path, dest: Path, name: str, *options: str) -> Measurement:
    """Exports a run in a new process."""
    started = time.monotonic()
    command = [sys.executable, "-m", "benchmarks.export", "--child", str(out), str(dest), name, *options]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    seconds = time.monotonic() - started
    size = sum(path.stat().st_size for path in dest.rglob("*") if path.is_file())
    return Measurement(seconds, float(printed.splitlines()[-1]), size)


def _child(out: str, dest: str, name: str, *options: str) -> None:
    code = maskmill(["export", out, dest, "--format", name, "--images", "none", *options])
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    sys.exit(code)


def main() -> None:
    """Makes the run, exports it to each format and prints a table."""
    if sys.argv[1:2] == ["--child"]:
        _child(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--format", action="append", choices=list(FormatName), help="default: all")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out")
        make_run(out, arguments.images)
        masks = arguments.images * MASKS_PER_IMAGE
        run_bytes = sum(path.stat().st_size for path in out.rglob("*.parquet"))
        print(f"{masks} masks, {HEIGHT} x {WIDTH} pixels, {run_bytes / 2**20:.0f} MiB as tables\n")
        print("| format | masks/s | peak memory, MiB | size, MiB |\n|---|---|---|---|")
        for name in arguments.format or list(FormatName):
            result = measure(out, Path(folder, name), name)
            print(
                f"| {name} | {masks / result.seconds:.0f} | {result.peak_mib:.0f} | {result.bytes / 2**20:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
