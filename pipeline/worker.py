"""Processes one shard into one committed part, on one device and without Ray."""

from __future__ import annotations

import hashlib
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

from maskmill.pipeline.config import DecodingConfig
from maskmill.pipeline.engine import Engine
from maskmill.pipeline.errors import ImageError, one_line_cause
from maskmill.pipeline.images import decode_image
from maskmill.pipeline.ledger import Ledger
from maskmill.pipeline.progress import Attempt, OnCommit, OnProgress, Progress
from maskmill.pipeline.records import (
    STEPS,
    Clock,
    DecodedImage,
    Failure,
    ImageMasks,
    ImageRecord,
    ImageResult,
    Shard,
    StepTimer,
)
from maskmill.pipeline.sources import Source
from maskmill.pipeline.table import encode_part
from maskmill.pipeline.views import ResizedImage

# Images of a shard that are fetched, decoded and resized in advance, while the device computes.
AHEAD = 4
MAX_REASON_CHARACTERS = 500


@dataclass(frozen=True)
class Job:
    """The inputs that all workers of a run share. Picklable."""

    source: Source
    ledger: Ledger
    make_engine: Callable[[], Engine]
    decoding: DecodingConfig
    clock: Clock = time.perf_counter
    decode: Callable[[bytes, DecodingConfig], DecodedImage] = decode_image


def run_local(job: Job, shards: Iterable[Shard], on_progress: OnProgress, on_commit: OnCommit = lambda _: None) -> None:
    """Processes shards one after the other in this process. Unlike `cluster.run`, a crash ends the run.

    The device is idle while a shard is committed.
    """
    engine = job.make_engine()
    for shard in shards:
        for progress in process_shard(job, engine, shard):
            if progress.status is not None:
                on_progress(progress)
        on_commit(shard)


def process_shard(
    job: Job,
    engine: Engine,
    shard: Shard,
    attempt: Attempt = Attempt(),
    device_lock: AbstractContextManager[object] | None = None,
    ahead: int = AHEAD,
) -> Iterator[Progress]:
    """Commits the part of a shard. Yields the progress of each image, in the order of the source.

    Shards of one engine share the `device_lock` and hold it from the first inference to the last. While one shard
    holds it, the next shard fetches and prepares up to `ahead` images, and the previous shard is encoded and committed.

    An image that cannot be fetched, decoded or inferred becomes a failed row. If another worker commits the shard
    first, that is not an error. Raises StorageError if the source or the output cannot be reached. Any exception after
    which the device no longer computes is raised too.
    """
    if not job.ledger.is_committed(shard):
        left_out = Counter[str]()
        fetched = _fetch(job, shard, left_out)
        reading = (
            _decode_on_demand(job, engine, fetched) if attempt.isolated else _decode_ahead(job, engine, fetched, ahead)
        )
        with reading as images, device_lock or nullcontext():
            results = yield from _infer_all(engine, shard, images, attempt)
        missing = shard.missing([result.image_id for result in results])
        results += (_missing_result(shard, image_id, attempt) for image_id in missing)
        job.ledger.commit(shard, encode_part(shard, results, job.ledger.identity, left_out))
    # Also if another worker committed the shard: it may have died before it published the images.
    job.ledger.publish_images(shard.name)


def _infer_all(
    engine: Engine, shard: Shard, images: Iterator[_Fetched], attempt: Attempt
) -> Generator[Progress, None, list[ImageResult]]:
    """Infers the images that the source returned. Yields progress, returns their results in order."""
    results: list[ImageResult] = []
    pending: deque[Future[ImageResult]] = deque()
    at_once = 1 if attempt.isolated else engine.at_once

    def finish_one() -> Progress:
        results.append(result := pending.popleft().result())
        n_masks = len(result.outcome) if isinstance(result.outcome, ImageMasks) else 0
        step = result.outcome.step if isinstance(result.outcome, Failure) else STEPS[-1]
        total = sum(result.milliseconds.values())
        return Progress(shard.index, result.image_id, step, result.status, n_masks, total)

    with ThreadPoolExecutor(at_once) as pool:
        # torch keeps a pool of threads for each calling thread, so a single image is inferred in this thread.
        submit = pool.submit if at_once > 1 else _run_now
        for record, decode in images:
            yield Progress(shard.index, record.image_id, "decode")
            if failure := attempt.quarantined.get(record.image_id):
                pending.append(_run_now(_quarantined_result, record, failure, attempt))
            else:
                image = decode()
                yield Progress(shard.index, record.image_id, "encode")
                pending.append(submit(_infer, engine, image, attempt))
            if len(pending) == at_once:
                yield finish_one()
        while pending:
            yield finish_one()
    return results


def _run_now(function: Callable[..., ImageResult], *arguments: object) -> Future[ImageResult]:
    """Calls a function in this thread. Returns its result as a completed future."""
    future: Future[ImageResult] = Future()
    future.set_result(function(*arguments))
    return future


@dataclass(frozen=True)
class _Image:
    """An image prepared for the device, or the reason why preparation failed. `record` has no image data."""

    record: ImageRecord
    prepared: ResizedImage | Failure
    sha256: str | None
    timer: StepTimer


# The images of a shard as they are fetched.
_Records = Iterator[tuple[ImageRecord, StepTimer]]
# A fetched image, and a function that decodes and prepares it.
_Fetched = tuple[ImageRecord, "Callable[[], _Image]"]


@contextmanager
def _decode_on_demand(job: Job, engine: Engine, fetched: _Records) -> Iterator[Iterator[_Fetched]]:
    """The images of a shard in order. Each is fetched when the iterator reaches it and decoded when the caller asks."""
    yield ((record, partial(_decode, job, engine, record, timer)) for record, timer in fetched)


@contextmanager
def _decode_ahead(job: Job, engine: Engine, fetched: _Records, ahead: int) -> Iterator[Iterator[_Fetched]]:
    """The images of a shard in order. Threads fetch and decode the next `ahead` images in advance."""

    def decode(fetch: Future[tuple[ImageRecord, StepTimer] | None]) -> tuple[ImageRecord, _Image] | None:
        return (record := fetch.result()) and (record[0], _decode(job, engine, *record))

    # One fetching thread: sources are read in order and are not thread-safe.
    with ThreadPoolExecutor(1) as fetcher, ThreadPoolExecutor(ahead) as decoders:
        window = deque(decoders.submit(decode, fetcher.submit(next, fetched, None)) for _ in range(ahead))

        def images() -> Iterator[_Fetched]:
            while decoded := window.popleft().result():
                window.append(decoders.submit(decode, fetcher.submit(next, fetched, None)))
                record, image = decoded
                yield record, lambda image=image: image

        yield images()


def _fetch(job: Job, shard: Shard, left_out: Counter[str]) -> _Records:
    records = job.source.read(shard, left_out)
    while True:
        timer = StepTimer(job.clock)
        with timer.step("fetch"):
            record = next(records, None)
        if record is None:
            return
        if record.image_id not in shard.skip:
            yield record, timer


def _decode(job: Job, engine: Engine, record: ImageRecord, timer: StepTimer) -> _Image:
    """Decodes an image and prepares it for the engine. The time of both counts as the step "decode"."""
    if isinstance(record.data, Failure):
        return _Image(record, record.data, None, timer)
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
        reason = _reason(error)
    else:
        return _Image(without_data, prepared, decoded.sha256, timer)
    sha256 = hashlib.sha256(record.data).hexdigest()
    return _Image(without_data, Failure("decode", reason), sha256, timer)


def _missing_result(shard: Shard, image_id: str, attempt: Attempt) -> ImageResult:
    if shard.is_archive(image_id):
        reason = "the archive can be read, but no image is in it besides those that the run has already"
    elif shard.image_ids is None:
        reason = "missing from the archive now, or behind the place where reading broke off"
    else:
        reason = "missing from the source now"
    failure = Failure("fetch", reason)
    return ImageResult(image_id, shard.uris.get(image_id, shard.uri), None, failure, {}, "failed", attempt.number)


def _quarantined_result(record: ImageRecord, failure: Failure, attempt: Attempt) -> ImageResult:
    sha256 = hashlib.sha256(record.data).hexdigest() if isinstance(record.data, bytes) else None
    return ImageResult(record.image_id, record.source_uri, sha256, failure, {}, "quarantined", attempt.number)


def _infer(engine: Engine, image: _Image, attempt: Attempt) -> ImageResult:
    outcome: ImageMasks | Failure
    if isinstance(image.prepared, Failure):
        outcome = image.prepared
    else:
        image.timer.current = "encode"  # the first step of the engine, which sets later steps itself
        try:
            outcome = engine.generate(image.prepared, image.timer)
        except Exception as error:
            if not engine.device_answers():
                raise
            outcome = Failure(image.timer.current, _reason(error))
    return ImageResult(
        image_id=image.record.image_id,
        source_uri=image.record.source_uri,
        sha256=image.sha256,
        outcome=outcome,
        milliseconds=image.timer.milliseconds,
        status="failed" if isinstance(outcome, Failure) else "ok",
        attempt=attempt.number,
    )


def _reason(error: Exception) -> str:
    """The error in one line, without memory addresses, so that equal failures have equal texts."""
    text = re.sub(r"0x[0-9a-fA-F]+", "0x...", one_line_cause(error, MAX_REASON_CHARACTERS))
    return f"{type(error).__name__}: {text}"[:MAX_REASON_CHARACTERS]
