"""Processes one shard into one committed part, on one device and without Ray."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from maskmill.filters.agreement import Agreement
from maskmill.pipeline.audit import Auditor
from maskmill.pipeline.engine import Engine
from maskmill.pipeline.errors import StorageError, failure_reason
from maskmill.pipeline.job import Job
from maskmill.pipeline.progress import Attempt, OnCommit, OnProgress, Overtaken, Progress
from maskmill.pipeline.reading import FetchedImage, PreparedImage, decode_ahead, decode_on_demand, fetch
from maskmill.pipeline.records import (
    STEPS,
    Failure,
    ImageMasks,
    ImageRecord,
    ImageResult,
    Shard,
    Work,
)
from maskmill.pipeline.table import encode_part
from maskmill.pipeline.walk import Walk


class EngineFailedError(Exception):
    """A shard is refused because an earlier shard of the same engine raised. It is not the cause."""


class DeviceLock:
    """The right of one shard to use the engine. No shard gets it after a shard raised, because the engine is lost."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failed = False

    def __enter__(self) -> None:
        self._lock.acquire()
        if self._failed:
            self._lock.release()
            raise EngineFailedError("an earlier shard of this worker failed")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._failed = isinstance(error, Exception) and not isinstance(error, StorageError)
        self._lock.release()


# Images of a shard that are fetched, decoded and resized in advance, while the device computes.
AHEAD = 4


def run_local(job: Job, shards: Iterable[Shard], on_progress: OnProgress, on_commit: OnCommit = lambda _: None) -> None:
    """Processes shards one after the other in this process. Unlike `cluster.run`, a crash ends the run.

    The device is idle while a shard is committed. With a Walk, several processes share a plan.
    """
    engine = job.make_engine()
    auditor = job.audit and Auditor(job.audit)
    for shard in shards:
        for record in process_shard(job, engine, shard, auditor=auditor):
            if isinstance(record, Overtaken):
                if isinstance(shards, Walk):
                    shards.jump()
            elif record.status is not None:
                on_progress(record)
        on_commit(shard)


def process_shard(
    job: Job,
    engine: Engine,
    shard: Shard,
    attempt: Attempt = Attempt(),
    device_lock: DeviceLock | None = None,
    ahead: int = AHEAD,
    auditor: Auditor | None = None,
    on_result: Callable[[ImageResult], None] = lambda _: None,
) -> Iterator[Progress | Overtaken]:
    """Commits the part of a shard. Yields the progress of each image, in the order of the source.

    Shards of one engine share the `device_lock` and hold it from the first inference to the last. While one shard
    holds it, the next shard fetches and prepares up to `ahead` images, and the previous shard is encoded and committed.

    An image that cannot be fetched, decoded or inferred becomes a failed row. If another worker commits the shard
    first, that is not an error: the last record is Overtaken. The `auditor` compares some images with exact precision.
    `on_result` is called for each image.
    Raises StorageError if the source or the output cannot be reached, and EngineFailedError if another shard with the
    same `device_lock` raised. Any exception after which the device no longer computes is raised too.
    """
    overtaken = job.ledger.is_committed(shard)
    if not overtaken:
        left_out = Counter[str]()
        fetched = fetch(job, shard, left_out)
        reading = (
            decode_on_demand(job, engine, fetched) if attempt.isolated else decode_ahead(job, engine, fetched, ahead)
        )
        with reading as images, device_lock or DeviceLock():
            # Another driver may have committed it while it waited for the device.
            overtaken = job.ledger.is_committed(shard)
            began = job.wall_clock()
            results: list[ImageResult] = []
            for progress in () if overtaken else _infer_all(engine, shard, images, attempt, auditor, results):
                if progress.status is not None:
                    on_result(results[-1])
                yield progress
        if not overtaken:
            for image_id in shard.missing([result.image_id for result in results]):
                results.append(_missing_result(shard, image_id, attempt))
                on_result(results[-1])
            work = Work(job.worker_name(), began, job.wall_clock())
            part = encode_part(shard, results, job.ledger.identity, left_out, work)
            overtaken = not job.ledger.commit(shard, part)
    # Also if another worker committed the shard: it may have died before it published the images.
    job.ledger.publish_images(shard.name)
    if overtaken:
        yield Overtaken(shard.index)


def _infer_all(
    engine: Engine,
    shard: Shard,
    images: Iterator[FetchedImage],
    attempt: Attempt,
    auditor: Auditor | None,
    results: list[ImageResult],
) -> Iterator[Progress]:
    """Infers the images that the source returned. Yields progress, and appends their results in order."""
    pending: deque[Future[ImageResult]] = deque()
    at_once = 1 if attempt.isolated else engine.at_once
    auditor = None if attempt.isolated else auditor  # an image is not blamed for its audit
    audited = 0

    def finish_one() -> Progress:
        results.append(result := pending.popleft().result())
        n_masks = len(result.outcome) if isinstance(result.outcome, ImageMasks) else 0
        step = result.outcome.step if isinstance(result.outcome, Failure) else STEPS[-1]
        total = sum(result.milliseconds.values())
        return Progress(shard.index, result.image_id, step, result.status, n_masks, total, result.audit)

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
                chosen = None
                if auditor and not isinstance(image.prepared, Failure):
                    chosen = auditor if auditor.audit.chooses(shard, record.image_id, audited) else None
                    audited += chosen is not None
                pending.append(submit(_infer, engine, image, attempt, chosen))
            if len(pending) == at_once:
                yield finish_one()
        while pending:
            yield finish_one()


def _run_now(function: Callable[..., ImageResult], *arguments: object) -> Future[ImageResult]:
    """Calls a function in this thread. Returns its result as a completed future."""
    future: Future[ImageResult] = Future()
    future.set_result(function(*arguments))
    return future


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


def _infer(engine: Engine, image: PreparedImage, attempt: Attempt, auditor: Auditor | None) -> ImageResult:
    outcome: ImageMasks | Failure
    audit: Agreement | Failure | None = None
    if isinstance(image.prepared, Failure):
        outcome = image.prepared
    else:
        image.timer.current = "encode"  # the first step of the engine, which sets later steps itself
        try:
            outcome = engine.generate(image.prepared, image.timer)
        except Exception as error:
            if not engine.device_answers():
                raise
            outcome = Failure(image.timer.current, failure_reason(error))
        if auditor and isinstance(outcome, ImageMasks):
            try:
                audit = auditor.compare(image.prepared, outcome, image.timer.clock)
            except Exception as error:
                if not engine.device_answers():
                    raise
                audit = Failure("audit", failure_reason(error))
    return ImageResult(
        image_id=image.record.image_id,
        source_uri=image.record.source_uri,
        sha256=image.sha256,
        outcome=outcome,
        milliseconds=image.timer.milliseconds,
        status="failed" if isinstance(outcome, Failure) else "ok",
        attempt=attempt.number,
        audit=audit,
    )
