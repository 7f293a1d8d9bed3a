"""Fetches, decodes and prepares the images of a shard, in advance of the device or one at a time."""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from maskmill.pipeline.engine import Engine
from maskmill.pipeline.errors import ImageError, failure_reason
from maskmill.pipeline.job import Job
from maskmill.pipeline.records import Failure, ImageRecord, Shard, StepTimer
from maskmill.pipeline.views import ResizedImage


@dataclass(frozen=True)
class PreparedImage:
    """An image prepared for the device, or the reason why preparation failed. `record` has no image data."""

    record: ImageRecord
    prepared: ResizedImage | Failure
    sha256: str | None
    timer: StepTimer


# The images of a shard as they are fetched.
Records = Iterator[tuple[ImageRecord, StepTimer]]
# A fetched image, and a function that decodes and prepares it.
FetchedImage = tuple[ImageRecord, "Callable[[], PreparedImage]"]


@contextmanager
def decode_on_demand(job: Job, engine: Engine, fetched: Records) -> Iterator[Iterator[FetchedImage]]:
    """The images of a shard in order. Each is fetched when the iterator reaches it and decoded when the caller asks."""
    yield ((record, partial(_decode, job, engine, record, timer)) for record, timer in fetched)


@contextmanager
def decode_ahead(job: Job, engine: Engine, fetched: Records, ahead: int) -> Iterator[Iterator[FetchedImage]]:
    """The images of a shard in order. Threads fetch and decode the next `ahead` images in advance."""

    def decode(fetch: Future[tuple[ImageRecord, StepTimer] | None]) -> tuple[ImageRecord, PreparedImage] | None:
        return (record := fetch.result()) and (record[0], _decode(job, engine, *record))

    # One fetching thread: sources are read in order and are not thread-safe.
    with ThreadPoolExecutor(1) as fetcher, ThreadPoolExecutor(ahead) as decoders:
        window = deque(decoders.submit(decode, fetcher.submit(next, fetched, None)) for _ in range(ahead))

        def images() -> Iterator[FetchedImage]:
            while decoded := window.popleft().result():
                window.append(decoders.submit(decode, fetcher.submit(next, fetched, None)))
                record, image = decoded
                yield record, lambda image=image: image

        yield images()


def fetch(job: Job, shard: Shard, left_out: Counter[str]) -> Records:
    """The images of a shard in the order of the source. `left_out` counts, by reason, what the source skips."""
    records = job.source.read(shard, left_out)
    while True:
        timer = StepTimer(job.clock)
        with timer.step("fetch"):
            record = next(records, None)
        if record is None:
            return
        if record.image_id not in shard.skip:
            yield record, timer


def _decode(job: Job, engine: Engine, record: ImageRecord, timer: StepTimer) -> PreparedImage:
    """Decodes an image and prepares it for the engine. The time of both counts as the step "decode"."""
    if isinstance(record.data, Failure):
        return PreparedImage(record, record.data, None, timer)
    without_data = ImageRecord(record.image_id, record.source_uri, b"")
    try:
        with timer.step("decode"):
            decoded = job.decode(record.data, job.decoding)
            prepared = engine.prepare(decoded.pixels)
    except ImageError as error:
        reason = str(error)
    except Exception as error:
        if not engine.device_answers():
            raise
        # Decoders can raise any exception for malformed data. It fails this image only.
        reason = failure_reason(error)
    else:
        return PreparedImage(without_data, prepared, decoded.sha256, timer)
    sha256 = hashlib.sha256(record.data).hexdigest()
    return PreparedImage(without_data, Failure("decode", reason), sha256, timer)
