"""Measures device utilisation: the fraction of time in which the device of a worker on Ray is busy.

    python -m benchmarks.feeding                       # 512 images of 30 ms each, 50 ms to every answer of the store
    python -m benchmarks.feeding --source-latency 0    # the images are near, the output is far
    python -m benchmarks.feeding --host-milliseconds 10 --at-once 2    # as on a GPU

The device is simulated by sleeping, and the store is the local disk with added latency. All other parts are those of a
real run. Time is measured from the start of the first image to the end of the last image.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maskmill.filters import rle
from maskmill.filters.names import FILTERS
from maskmill.pipeline import cluster
from maskmill.pipeline.config import DEFAULT_DECODING
from maskmill.pipeline.job import Job
from maskmill.pipeline.ledger import Ledger
from maskmill.pipeline.records import ImageMasks, StepTimer
from maskmill.pipeline.sources import ImageFolder
from maskmill.pipeline.storage import LocalStorage
from maskmill.pipeline.views import ResizedImage
from testing.ray_cluster import this_machine

MASKS_PER_IMAGE = 100
CPUS = 2  # room for one worker


@dataclass(frozen=True)
class FarStorage(LocalStorage):
    """Local storage with a fixed latency added to every request."""

    latency: float = 0.0  # seconds

    def open(self, key: str) -> BinaryIO:  # `read` also calls this method
        time.sleep(self.latency)
        return super().open(key)

    def exists(self, key: str) -> bool:
        time.sleep(self.latency)
        return super().exists(key)

    def create(self, key: str, data: bytes) -> bool:
        time.sleep(self.latency)
        return super().create(key, data)

    def put(self, key: str, data: bytes) -> None:
        time.sleep(self.latency)
        super().put(key, data)


@dataclass(frozen=True)
class SleepingDevice:
    """An engine that sleeps instead of computing: `seconds` on the device, then `host_seconds` on the host, per image.

    It appends the start and end time of each device operation to `record`.
    """

    record: Path
    seconds: float
    host_seconds: float
    at_once: int
    device_lock: threading.Lock | None = None  # one image at a time; created in the worker

    def __call__(self) -> SleepingDevice:
        return replace(self, device_lock=threading.Lock())

    def prepare(self, pixels_HW3: NDArray[np.uint8]) -> ResizedImage:
        """Returns an image without views, because this engine does not read pixels."""
        height, width = pixels_HW3.shape[:2]
        return ResizedImage(height, width, views=())

    def device_answers(self) -> bool:
        """Returns True: the simulated device never fails."""
        return True

    def generate(self, image: ResizedImage, timer: StepTimer) -> ImageMasks:
        """Sleeps, then returns the same masks for all images of the same size."""
        assert self.device_lock is not None, "called"
        with timer.step("encode"), self.device_lock:
            start = time.monotonic()
            time.sleep(self.seconds)
            end = time.monotonic()
            with self.record.open("a") as stream:
                stream.write(f"{start} {end}\n")
        with timer.step("rle"):
            time.sleep(self.host_seconds)
        return _masks(image.height, image.width)


def _masks(height: int, width: int) -> ImageMasks:
    """Creates identical rectangular masks."""
    mask_HW = np.zeros((height, width), dtype=np.bool_)
    mask_HW[: height // 2, : width // 2] = True
    N, counts = MASKS_PER_IMAGE, rle.encode(mask_HW)
    return ImageMasks(
        height=height,
        width=width,
        area=np.full(N, rle.area(counts, height, width), np.int64),
        boxes=np.tile(rle.bbox(counts, height, width), (N, 1)).astype(np.int64),
        predicted_iou=np.linspace(1.0, 0.5, N, dtype=np.float32),
        stability_score=np.linspace(0.9, 1.0, N, dtype=np.float32),
        points=np.zeros((N, 2)),
        crop_boxes=np.tile(np.array([0, 0, width, height]), (N, 1)),
        rle_counts=(counts,) * N,
        dropped=dict.fromkeys(FILTERS, 0),
    )


def main() -> None:
    """Runs the benchmark and prints the fraction of time in which the device is busy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--images-per-shard", type=int, default=64)
    parser.add_argument("--size", type=int, nargs=2, default=(320, 240), help="width and height of every image")
    parser.add_argument("--milliseconds", type=float, default=30, help="that the device takes for an image")
    parser.add_argument("--host-milliseconds", type=float, default=0, help="that an image takes beyond the device")
    parser.add_argument("--at-once", type=int, default=1, help="images that the engine takes at a time")
    parser.add_argument("--latency", type=float, default=50, help="of the output, in milliseconds")
    parser.add_argument("--source-latency", type=float, help="of the images' store; default: that of the output")
    arguments = parser.parse_args()
    source_latency = arguments.latency if arguments.source_latency is None else arguments.source_latency
    print(
        f"{arguments.images} images of {arguments.size[0]}x{arguments.size[1]}, {arguments.images_per_shard} a shard; "
        f"device {arguments.milliseconds:g} ms per image, host "
        f"{arguments.host_milliseconds:g} ms, {arguments.at_once} at once; "
        f"latency of the source {source_latency:g} ms, of the output {arguments.latency:g} ms; "
        f"Python {platform.python_version()}, {os.cpu_count()} cores, "
        f"load average {os.getloadavg()[0]:.1f}"
    )
    with tempfile.TemporaryDirectory(prefix="maskmill-feeding-") as folder:
        root = Path(folder)
        device = SleepingDevice(
            root / "record", arguments.milliseconds / 1000, arguments.host_milliseconds / 1000, arguments.at_once
        )
        (root / "images").mkdir()
        (root / "out").mkdir()
        for number, data in enumerate(_pictures(arguments.images, *arguments.size)):
            (root / "images" / f"{number:06d}.jpg").write_bytes(data)
        source = ImageFolder(FarStorage(root / "images", source_latency / 1000), str(root / "images"))
        ledger = Ledger(FarStorage(root / "out", arguments.latency / 1000), "feeding")
        with this_machine(num_cpus=CPUS):
            shards = list(source.plan(arguments.images_per_shard))
            cluster.run(Job(source, ledger, device, DEFAULT_DECODING), shards, lambda _: None, device="cpu")
        inferences = np.loadtxt(device.record)
    assert len(inferences) == arguments.images, "each image is inferred once"
    busy, wall = (inferences[:, 1] - inferences[:, 0]).sum(), inferences[:, 1].max() - inferences[:, 0].min()
    print(f"device busy {busy / wall:.1%} of {wall:.1f} s, {len(inferences) / wall:.1f} images/s")


def _pictures(count: int, width: int, height: int) -> Iterator[bytes]:
    """Cycles through a few different JPEGs of low-frequency noise."""
    noise = np.random.default_rng(0)
    encoded: list[bytes] = []
    for _ in range(8):
        coarse = Image.fromarray(noise.integers(0, 255, (height // 8 + 1, width // 8 + 1, 3), np.uint8))
        stream = io.BytesIO()
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
        encoded.append(stream.getvalue())
    for number in range(count):
        yield encoded[number % len(encoded)]


if __name__ == "__main__":
    main()
