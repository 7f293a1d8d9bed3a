"""A probe: processes a sample of a source on the device of this machine, and measures it as a run would be measured."""

from __future__ import annotations

import math
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from maskmill.pipeline.estimate import Sample
from maskmill.pipeline.inventory import FirstImages, thinned
from maskmill.pipeline.job import Job
from maskmill.pipeline.ledger import Ledger
from maskmill.pipeline.parts import list_parts, masks_key
from maskmill.pipeline.records import Shard
from maskmill.pipeline.storage import LocalStorage
from maskmill.pipeline.table import read_footer
from maskmill.pipeline.worker import process_shard


@dataclass(frozen=True)
class Probe:
    """What a probe measured."""

    sample: Sample
    start_seconds: float  # to load the model and to process the first image, which compiles code
    image_bytes: float  # encoded size of an image, mean
    output_bytes: float  # of both tables, per image
    output_requests: float  # per shard


@dataclass(frozen=True)
class _CountingStorage(LocalStorage):
    """A folder that counts the requests that an object store would get."""

    requests: Counter[str] = field(default_factory=Counter[str], kw_only=True)

    def exists(self, key: str) -> bool:
        self.requests["exists"] += 1
        return super().exists(key)

    def create(self, key: str, data: bytes) -> bool:
        self.requests["create"] += 1
        return super().create(key, data)

    def read(self, key: str) -> bytes:
        self.requests["read"] += 1
        return super().read(key)

    def put(self, key: str, data: bytes) -> None:
        self.requests["put"] += 1
        super().put(key, data)


def run_probe(job: Job, shards: Sequence[Shard], images: int) -> Probe:
    """Processes about `images` images, spread over the shards. The ledger of the job is not used.

    The first image is processed twice: the first time is not measured. Raises StorageError if the source cannot be
    reached, and what the engine raises when its device fails.
    """
    per_shard = math.ceil(images / len(shards))
    source = FirstImages(job.source, per_shard)
    with tempfile.TemporaryDirectory(prefix="maskmill-probe-") as folder:
        started = time.perf_counter()
        engine = job.make_engine()
        first = replace(job, source=FirstImages(job.source, 1), ledger=_ledger(Path(folder, "first")))
        list(process_shard(first, engine, thinned(shards[0], 1)))
        start_seconds = time.perf_counter() - started
        storage = _CountingStorage(Path(folder, "out"))
        storage.make()
        for shard in shards:
            measured = replace(job, source=source, ledger=Ledger(storage, ""))
            list(process_shard(measured, engine, thinned(shard, per_shard)))
        requests = storage.requests.total() / len(shards)
        written = sum(item.size for item in storage.list())
        footers = []
        for part in list_parts(storage, "masks"):
            with storage.open(masks_key(part)) as stream:
                footers.append(read_footer(stream))
    sample = Sample.of(footers)
    return Probe(
        sample=sample,
        start_seconds=start_seconds,
        image_bytes=sum(source.sizes) / max(1, len(source.sizes)),
        output_bytes=written / max(1, sample.images),
        output_requests=requests,
    )


def _ledger(folder: Path) -> Ledger:
    storage = LocalStorage(folder)
    storage.make()
    return Ledger(storage, "")
