"""Measures the images per second of a worker and the utilisation of its GPU.

    python -m benchmarks.throughput --model vit_h --device cuda    # a photograph 512 times, 32x32 points
    python -m benchmarks.throughput --model vit_h --device cuda --preset sa1b --images 64
    python -m benchmarks.throughput --images 8                     # mini on a CPU

The measured work is that of a worker, from the encoded bytes of a photograph to rows in a committed Parquet part.
Images are decoded ahead, and the engine processes as many images concurrently as it supports. Masks and thresholds are
the same as in `benchmarks.engine` (benchmarks/README.md). GPU utilisation is the value that nvidia-smi reports,
averaged from the end of the first image to the end of the last image.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import mean

import torch
from PIL import Image

from benchmarks import load
from benchmarks.machine import RESULTS, describe_machine
from benchmarks.peers import DECODING
from maskmill.model.checkpoint import load_model
from maskmill.model.families import VARIANTS
from maskmill.model.optimize import optimize, resolve_device
from maskmill.pipeline.config import PRESETS
from maskmill.pipeline.engine import Engine
from maskmill.pipeline.generator import MaskGenerator
from maskmill.pipeline.images import decode_image
from maskmill.pipeline.job import Job
from maskmill.pipeline.ledger import Ledger
from maskmill.pipeline.progress import Overtaken
from maskmill.pipeline.records import ImageRecord, Shard
from maskmill.pipeline.sources import PlannedSource
from maskmill.pipeline.storage import LocalStorage
from maskmill.pipeline.worker import process_shard
from testing.networks import random_network

SAMPLE_MILLISECONDS = 100


@dataclass(frozen=True)
class Copies:
    """A source that returns the same image `count` times."""

    data: bytes
    count: int
    uri: str = "copies"

    @property
    def planned(self) -> PlannedSource:
        """Not implemented: the benchmark does not write a plan."""
        raise NotImplementedError

    def plan(self, images_per_shard: int) -> Iterator[Shard]:
        """Yields one shard with all images."""
        yield Shard(0, self.uri)

    def read(self, shard: Shard, left_out: Counter[str] | None = None) -> Iterator[ImageRecord]:
        """Returns the images from memory."""
        return (ImageRecord(f"{number:06d}", self.uri, self.data) for number in range(self.count))


def main() -> None:
    """Parses the arguments, runs the benchmark, and prints and writes the report."""
    arguments = _arguments()
    device = resolve_device(arguments.device)
    variant = VARIANTS[arguments.model]
    data = arguments.photograph.read_bytes() if arguments.photograph else _motorcycle(arguments.width)
    pixels_HW3 = decode_image(data, DECODING).pixels
    candidates = load.CandidateFinder(32, device)(pixels_HW3)
    config = load.thresholds_by_rank(PRESETS[arguments.preset], [candidates])
    if variant.name == "mini":
        network = optimize(load_model("mini", None).network, arguments.precision, device)
    else:
        replay = load.Replay(variant, device)
        replay.show(candidates)
        network = load.ReplayedNetwork(optimize(random_network(variant), arguments.precision, device), replay)
    engine = MaskGenerator(network, config)
    height, width = pixels_HW3.shape[:2]
    facts = describe_machine(device) | {
        "engine": f"{variant.name}, {arguments.precision}, {arguments.preset} preset with thresholds by rank",
        "photograph": f"{width} x {height}, {len(data) / 1e6:.1f} MB, {arguments.images} times",
    }
    _run(engine, Copies(data, 2))  # warm-up: compiles kernels and allocates memory
    ends, masks, busy = _run(engine, Copies(data, arguments.images))
    seconds = ends[-1] - ends[0]
    facts["images per second"] = f"{(len(ends) - 1) / seconds:.2f}, {masks / len(ends):.0f} masks each"
    facts["device busy"] = f"{mean(busy):.0%}" if busy else "not measured: no GPU"
    report = f"# Throughput of a worker, {date.today()}\n\n" + "".join(f"- {k}: {v}\n" for k, v in facts.items())
    print(report)
    arguments.out.mkdir(parents=True, exist_ok=True)
    name = f"{date.today()}-throughput-{variant.name}-{arguments.preset}-{arguments.precision}-{device.type}.md"
    (arguments.out / name).write_text(report)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=VARIANTS, default="mini")
    parser.add_argument("--preset", choices=PRESETS, default="official")
    parser.add_argument("--precision", choices=("exact", "fast"), default="fast")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--photograph", type=Path, metavar="FILE", help="default: scikit-image's motorcycle, as a JPEG")
    parser.add_argument("--width", type=int, default=2250, help="in pixels, of the default photograph")
    parser.add_argument("--images", type=int, default=512, metavar="N", help="at least 2")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="default: benchmarks/results")
    return parser.parse_args()


def _motorcycle(width: int) -> bytes:
    import skimage.data

    with Image.open(Path(skimage.data.__file__).parent / "motorcycle_left.png") as image:
        enlarged = image.resize((width, round(width * image.height / image.width)), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    enlarged.save(stream, "JPEG", quality=90)
    return stream.getvalue()


def _run(engine: Engine, source: Copies) -> tuple[list[float], int, list[float]]:
    """Runs one shard. Returns the end time of each image, the total number of masks and samples of GPU utilisation."""
    ends, masks = [], 0
    with tempfile.TemporaryDirectory(prefix="maskmill-throughput-") as folder:
        ledger = Ledger(LocalStorage(Path(folder)), "throughput")
        job = Job(source, ledger, lambda: engine, DECODING)
        with _busy_shares() as samples:
            for progress in process_shard(job, engine, Shard(0, source.uri), ahead=os.cpu_count() or 1):
                assert not isinstance(progress, Overtaken), "no other worker uses this folder"
                if progress.status is not None:
                    assert progress.status == "ok", "the photograph failed"
                    ends.append(time.monotonic())
                    masks += progress.n_masks
        assert ledger.is_committed(Shard(0, source.uri))
    return ends, masks, [share for at, share in samples if ends[0] <= at <= ends[-1]]


@contextmanager
def _busy_shares() -> Iterator[list[tuple[float, float]]]:
    """Samples the utilisation of the first GPU: (time, fraction of the last sampling period with a running kernel)."""
    samples: list[tuple[float, float]] = []
    if not torch.cuda.is_available():
        yield samples
        return
    query = ["nvidia-smi", "--id=0", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    with subprocess.Popen([*query, f"--loop-ms={SAMPLE_MILLISECONDS}"], stdout=subprocess.PIPE, text=True) as process:

        def listen() -> None:
            for line in process.stdout or ():
                samples.append((time.monotonic(), int(line) / 100))

        listener = threading.Thread(target=listen)
        listener.start()
        try:
            yield samples
        finally:
            process.terminate()
            listener.join()


if __name__ == "__main__":
    main()
