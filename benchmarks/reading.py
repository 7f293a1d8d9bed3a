"""Time and memory of reading a large synthetic run through `maskmill.open_run`: python -m benchmarks.reading

Prints for each operation its seconds, and by how much the peak memory of the process grew over the same operations on a
run of a tenth of the size.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

import maskmill
from maskmill.pipeline.storage import open_storage
from testing.synthetic_runs import mask_pool, write_run

OPERATIONS: dict[str, Callable[[maskmill.Run, str], Any]] = {
    "len(run)": lambda run, image_id: len(run),
    "run[image_id]": lambda run, image_id: run[image_id],
    "run.sample(16)": lambda run, image_id: run.sample(16),
    "masks of one image": lambda run, image_id: run.masks.to_table(filter=pc.field("image_id") == image_id),
    "scan of a column": lambda run, image_id: sum(batch.num_rows for batch in run.masks.to_batches(columns=["area"])),
    "100 items of run.torch_dataset()": lambda run, image_id: _items(run.torch_dataset(len), 100),
    "run.values()": lambda run, image_id: sum(1 for _ in run.values()),
}


def _items(data: Any, count: int) -> int:
    return sum(data[index] for index in range(0, len(data), -(-len(data) // count)))


def measure(folder: Path, images: int, masks: int) -> dict[str, tuple[float, int]]:
    """Operation -> (seconds, growth of the peak in MB)."""
    pool = mask_pool(256, 480, 640)
    runs: list[tuple[maskmill.Run, str]] = []
    for count in (images // 10, images):
        out = str(folder / f"{count}")
        write_run(open_storage(out, make=True), count, masks, pool)
        run = maskmill.open_run(out)
        runs.append((run, next(iter(run))))
    for operation in OPERATIONS.values():
        operation(*runs[0])
    figures: dict[str, tuple[float, int]] = {}
    for name, operation in OPERATIONS.items():
        peak, started = _peak_mb(), time.perf_counter()
        operation(*runs[1])
        figures[name] = time.perf_counter() - started, _peak_mb() - peak
    return figures


def _peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--masks", type=int, default=20, help="per image")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), arguments.images, arguments.masks)
    print(f"{arguments.images} images, {arguments.images * arguments.masks} masks\n")
    print("| operation | seconds | growth of peak memory, MB |\n|---|---|---|")
    for name, (seconds, growth) in figures.items():
        print(f"| `{name}` | {seconds:.3g} | {growth} |")


if __name__ == "__main__":
    main()
