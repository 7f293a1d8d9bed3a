"""Runs shards on a Ray cluster: worker actors, the loop of the driver, and the handling of failures.

Only this module, doctor.py and ray_jobs.py import ray.
"""

from __future__ import annotations

import logging
import math
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import cv2
import ray
import torch
from ray._private.state import state
from ray._raylet import setproctitle  # pyright: ignore[reportAttributeAccessIssue]
from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayActorError, RayError, RayTaskError
from ray.util import metrics

from maskmill.model.errors import CheckpointError, DeviceError
from maskmill.pipeline.audit import Auditor
from maskmill.pipeline.engine import Engine
from maskmill.pipeline.errors import RunFailedError, RunStoppedError, StorageError, exception_line, failure_reason
from maskmill.pipeline.job import Job
from maskmill.pipeline.local_ray import local_environment
from maskmill.pipeline.placement import LabelSelector, Machine, Placement, has_labels, place
from maskmill.pipeline.plan import Plan
from maskmill.pipeline.progress import Attempt, OnCommit, OnProgress, Overtaken, Progress
from maskmill.pipeline.records import Failure, ImageMasks, ImageResult, Shard, StepTimer, process_name
from maskmill.pipeline.schedule import MAX_ATTEMPTS, Lease, Schedule
from maskmill.pipeline.signals import StopSignals
from maskmill.pipeline.summary import Summary, summarised
from maskmill.pipeline.views import ResizedImage
from maskmill.pipeline.walk import Walk
from maskmill.pipeline.worker import DeviceLock, EngineFailedError, process_shard
from maskmill.pipeline.workers import Actor, Reference, Workers

SHARDS_PER_WORKER = 3  # one is committed, one is inferred, and one reads its first images ahead
MAX_AHEAD = 8  # upper limit, on machines with many CPUs, for the images of a shard that are decoded in advance
DRAIN_SECONDS = 25.0  # containers are usually killed 30 seconds after SIGTERM
METRICS_SECONDS = 1.0  # between two updates of the driver's metrics; Ray exports them every few seconds
MAX_REASONS = 30  # different reasons of failures that a worker exports
PROGRESS_SECONDS = 1.0  # between two reports of a worker
# The driver waits so long for further results after the first one, per pending call and at most: see Workers.wait.
PAUSE_SECONDS = 0.001
MAX_PAUSE_SECONDS = 0.1
PLACEMENT_SECONDS = 5.0  # between two checks for new machines
DRAINING_SECONDS = 1.0  # between two checks for machines that will be removed; clouds give notice 30 s or more ahead
WARNINGS_PER_TIMEOUT = 6  # warnings about a silent worker before it is replaced
# This many consecutive failures end the run, because the shards are then not the cause.
MAX_FAILED_STARTS = 3  # per worker
MAX_FAILED_ATTEMPTS = 10  # per worker, without a finished image in between
MAX_STORAGE_ERRORS = SHARDS_PER_WORKER + 2  # without a commit in between; all shards of a worker may fail together
# The object store holds progress records only. Ray's default is a third of the memory, which a container may not have.
OBJECT_STORE_BYTES = 100 * 2**20

logger = logging.getLogger(__name__)


def run(
    job: Job,
    shards: Plan | list[Shard],
    on_progress: OnProgress,
    on_commit: OnCommit = lambda _: None,
    device: str = "auto",
    address: str | None = None,
    image_timeout: float = 1800.0,
    gpus_per_worker: float = 1,
    labels: Sequence[LabelSelector] = (),
    n_workers: int | None = None,
) -> Summary:
    """Commits a part for every shard. Returns what this driver did.

    Without an address, starts a local Ray cluster and stops it at the end. Without `n_workers`, starts as many workers
    as the machines have room for. With `labels`, only machines that match one of the selectors get workers, those that
    match an earlier one first.

    If a worker dies, raises or reports no progress for `image_timeout` seconds, its shards are tried again, one image
    at a time. An image that ends two such isolated attempts is quarantined. The loss of a machine does not count as a
    failure. `on_progress` is called once for each finished image, `on_commit` once for each committed shard. Failed
    attempts and silent workers are logged as warnings.

    After SIGINT or SIGTERM no more shards are assigned. Shards in progress have DRAIN_SECONDS to finish, then
    RunStoppedError is raised. A second signal stops at once. Committed shards stay committed: another run continues
    from there. The summary of this driver is written to the output at its end (see summary.py).

    Raises:
        RunFailedError: after all other shards are done, if shards failed; at once, if the cluster cannot be reached or
            the workers keep failing.
        StorageError: storage keeps failing.
        CheckpointError, DeviceError: a worker cannot build its engine.
        RunStoppedError: a signal stopped the run.
    """
    with session(address):
        workers = RayWorkers(job, labels)
        if labels and not workers.machines() and not n_workers:
            raise RunFailedError(f"no machine of this cluster has the labels of --labels; there are {all_labels()}")
        return drive(workers, job, shards, on_progress, on_commit, device, image_timeout, gpus_per_worker, n_workers)


def drive(
    workers: Workers,
    job: Job,
    shards: Plan | list[Shard],
    on_progress: OnProgress,
    on_commit: OnCommit,
    device: str,
    image_timeout: float,
    gpus_per_worker: float = 1,
    n_workers: int | None = None,
) -> Summary:
    """`run` with these workers."""
    with StopSignals() as signals, summarised(job.ledger.storage, job.ledger.identity) as summary:

        def count(progress: Progress) -> None:
            summary.add_image(progress)
            on_progress(progress)

        placement = place(list(workers.machines().values()), device, gpus_per_worker, n_workers)
        ledger = job.ledger
        walk = Walk(shards, ledger.committed, from_start=ledger.is_new) if isinstance(shards, Plan) else shards
        driver = _Driver(workers, placement, Schedule(walk, count, on_commit), image_timeout, summary, n_workers)
        try:
            driver.run(signals)
        finally:
            driver.close()
    return summary


def machines_of(labels: Sequence[LabelSelector] = ()) -> dict[str, Machine]:
    """The machines that can have workers, by Ray node id: alive, not draining, and matching one of `labels` if any."""
    draining = _draining()
    return {
        node["NodeID"]: node["Resources"]
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] not in draining
        if not labels or any(has_labels(node["Labels"], selector) for selector in labels)
    }


def all_labels() -> str:
    """The labels of all machines, for messages. Without the label for the id of a node, which Ray sets."""
    found = {f"{key}={value}" for node in ray.nodes() for key, value in node["Labels"].items()}
    return ", ".join(sorted(label for label in found if not label.startswith("ray.io/node-id="))) or "none"


def _draining() -> set[str]:
    """The Ray node ids of the machines that will be removed: Ray places no more actors on them.

    A cloud's notice of preemption, KubeRay and `ray drain-node` make a machine draining.
    """
    return set(state.get_draining_nodes())


@contextmanager
def session(address: str | None) -> Iterator[None]:
    if ray.is_initialized():
        yield
        return
    logging.getLogger("ray").setLevel(logging.ERROR)
    if address:
        _check_address(address)
        with _connection(f"no Ray cluster at {address}", address=address):
            yield
        return
    with (
        local_environment() as folder,
        _connection(
            "Ray cannot start on this machine",
            f" (is {folder} full, or `ulimit -n` low? Ray's logs are in {folder}/session_latest/logs)",
            address="local",
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            _temp_dir=folder,
        ),
    ):
        yield


@contextmanager
def _connection(problem: str, remedy: str = "", **options: Any) -> Iterator[None]:
    try:
        "".join(sys.argv).encode()
    except UnicodeEncodeError:  # Ray sends the command line to the cluster and fails if it is not UTF-8
        setproctitle("maskmill")
    try:
        ray.init(configure_logging=False, log_to_driver=False, **options)
    except (OSError, RuntimeError, ValueError, RayError) as error:
        raise RunFailedError(f"{problem}: {exception_line(str(error))}{remedy}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    if "://" in address:
        raise RunFailedError(
            f"{address}: Ray Client is not supported: run maskmill on a machine of the cluster with --address auto"
        )
    host, _, port = address.rpartition(":")
    if port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()  # ray.init would retry for minutes
        except OSError as error:
            raise RunFailedError(f"no Ray cluster at {address}: {error}") from error


class _WorkerMetrics:
    """What a worker exports to Prometheus, through Ray: see docs/tasks/cluster.md."""

    def __init__(self) -> None:
        self._images = metrics.Counter("maskmill_images", "Finished images, by status.", ("status",))
        self._masks = metrics.Counter("maskmill_masks", "Masks found.")
        self._failures = metrics.Counter("maskmill_failures", "Images without masks, by reason.", ("step", "reason"))
        self._steps = metrics.Counter("maskmill_step_seconds", "Time spent on images, by step.", ("step",))
        self._busy = metrics.Counter("maskmill_device_busy_seconds", "Time with at least one image at the engine.")
        self._reasons: set[str] = set()
        self._lock = threading.Lock()
        self._at_engine = 0  # images
        self._counted_until = 0.0

    def add(self, result: ImageResult) -> None:
        """Counts a finished image."""
        self._images.inc(tags={"status": result.status})
        for step, milliseconds in result.milliseconds.items():
            if milliseconds > 0:
                self._steps.inc(milliseconds / 1000, {"step": step})
        if isinstance(result.outcome, Failure):
            # The beginning of a reason says its kind. The rest may name a file: each would be a time series.
            reason = re.sub(r"\d+", "N", result.outcome.reason.partition(":")[0])[:60]
            if reason not in self._reasons and len(self._reasons) == MAX_REASONS:
                reason = "other"
            self._reasons.add(reason)
            self._failures.inc(tags={"step": result.outcome.step, "reason": reason})
        elif len(result.outcome):
            self._masks.inc(len(result.outcome))

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Counts the time of the block. Blocks that overlap, in several threads, count once."""
        self._count_busy(+1)
        try:
            yield
        finally:
            self._count_busy(-1)

    def _count_busy(self, change: int) -> None:
        with self._lock:
            now = time.monotonic()
            if self._at_engine and now > self._counted_until:
                self._busy.inc(now - self._counted_until)
            self._counted_until = now
            self._at_engine += change


class _MeasuredEngine:
    """An engine. Exports how long it has images."""

    def __init__(self, engine: Engine, metrics: _WorkerMetrics) -> None:
        self._engine, self._metrics = engine, metrics
        self.at_once = engine.at_once
        self.prepare, self.device_answers = engine.prepare, engine.device_answers

    def generate(self, image: ResizedImage, timer: StepTimer) -> ImageMasks:
        with self._metrics.busy():
            return self._engine.generate(image, timer)


class _Worker:
    """The actor: one engine that its shards use one after the other. Ray calls it from SHARDS_PER_WORKER threads."""

    def __init__(self, job: Job, placement: Placement) -> None:
        here, _ = self.place()
        (machine,) = (node["Resources"] for node in ray.nodes() if node["NodeID"] == here)
        threads = placement.threads_on(machine)
        torch.set_num_threads(threads)
        cv2.setNumThreads(threads)
        self._job = job
        self._ahead = min(max(2, threads), MAX_AHEAD)
        self._device_lock = DeviceLock()
        self._engine: Engine | None = None
        self._auditor = job.audit and Auditor(job.audit)
        self._metrics = _WorkerMetrics()

    def start(self) -> tuple[str, str]:
        """Builds the engine. Returns `place`."""
        # Not in __init__, because Ray passes exceptions of constructors to the driver as text only.
        self._engine = _MeasuredEngine(self._job.make_engine(), self._metrics)
        return self.place()

    def place(self) -> tuple[str, str]:
        """The Ray node id of the machine, and the name of the worker in the output."""
        return ray.get_runtime_context().get_node_id(), process_name()

    def process(self, shard: Shard, attempt: Attempt) -> Iterator[list[Progress | Overtaken]]:
        """Yields progress records: the first one at once, later ones in batches every PROGRESS_SECONDS.

        An isolated attempt yields every record at once.
        """
        assert self._engine is not None, "started"
        unsent: list[Progress | Overtaken] = []
        last = -math.inf
        arguments = (self._device_lock, self._ahead, self._auditor, self._metrics.add)
        for record in process_shard(self._job, self._engine, shard, attempt, *arguments):
            is_due = attempt.isolated or time.monotonic() - last >= PROGRESS_SECONDS
            if isinstance(record, Progress) and record.status is None and not is_due:
                continue  # the driver needs the steps of isolated attempts, and of others a sign of life
            unsent.append(record)
            if is_due:
                yield unsent
                unsent, last = [], time.monotonic()
        yield unsent


class RayWorkers:
    """Workers as actors of the Ray cluster that this process is connected to."""

    def __init__(self, job: Job, labels: Sequence[LabelSelector] = ()) -> None:
        self._job, self._labels = job, labels
        self._shards = metrics.Gauge("maskmill_shards", "Shards that are not finished, by state.", ("state",))
        self._workers = metrics.Gauge("maskmill_workers", "Workers, by state.", ("state",))

    def now(self) -> float:
        return time.monotonic()

    def machines(self) -> Mapping[str, Machine]:
        return machines_of(self._labels)

    def draining(self) -> Set[str]:
        return _draining()

    def start(self, placement: Placement) -> tuple[Actor, Reference]:
        actor_class: Any = ray.remote(_Worker)
        first, *others = self._labels or [{}]
        by_label = {"label_selector": first, "fallback_strategy": [{"label_selector": other} for other in others]}
        actor = actor_class.options(
            **(by_label if self._labels else {}),
            num_cpus=placement.cpus,
            num_gpus=placement.gpus,
            max_restarts=0,  # the driver replaces dead workers itself, to know when and on which machine they start
            max_task_retries=0,
            max_concurrency=SHARDS_PER_WORKER,
        ).remote(self._job, placement)
        return actor, actor.start.remote()

    def place(self, actor: Actor) -> Reference:
        return actor.place.remote()

    def process(self, actor: Actor, shard: Shard, attempt: Attempt) -> Reference:
        process = actor.process.options(
            num_returns="streaming",
            # In an isolated attempt a worker waits until the driver has received each record.
            _generator_backpressure_num_objects=1 if attempt.isolated else None,
        )
        return process.remote(shard, attempt)

    def wait(self, references: Sequence[Reference], timeout: float, pause: float) -> Sequence[Reference]:
        references = list(references)
        ready, _ = ray.wait(references, timeout=timeout, fetch_local=False)
        if ready:
            ready, _ = ray.wait(references, num_returns=len(references), timeout=pause, fetch_local=False)
        return ready

    def result(self, reference: Reference) -> tuple[str, str]:
        return ray.get(reference)

    def next_records(self, stream: Reference) -> list[Progress | Overtaken]:
        return ray.get(next(stream))

    def kill(self, actor: Actor) -> None:
        ray.kill(actor)

    def export(self, shards: Mapping[str, int], workers: Mapping[str, int]) -> None:
        for gauge, counts in ((self._shards, shards), (self._workers, workers)):
            for name, count in counts.items():
                gauge.set(count, {"state": name})


@dataclass(eq=False)
class _WorkerHandle:
    """A worker and its shards, in the order in which it infers them."""

    actor: Actor
    placement: Placement  # the resources that it requested
    starting: Reference  # pending result of `start` or `place`; None once it has arrived
    last_progress: float  # time of the last record, or of its first shard
    last_report: float  # time of the last record or warning
    machine: str = ""
    name: str = ""
    started: float | None = None  # time of the result of `start`
    leases: dict[Reference, Lease] = field(default_factory=dict[Reference, Lease])
    unconfirmed: list[Lease] = field(default_factory=list[Lease])  # its shards when Ray reported it unavailable
    finishing: set[Lease] | None = None  # its machine is draining: the shards in progress when the driver noticed it

    @property
    def is_ready(self) -> bool:
        """Whether it accepts another shard: not while one waits for the device or is an isolated attempt."""
        is_accepting = not self.starting and self.finishing is None
        return is_accepting and all(lease.has_begun and not lease.attempt.isolated for lease in self.leases.values())


class _Driver:
    """Starts the workers of a run, assigns shards to them and handles their results and failures."""

    def __init__(
        self,
        workers: Workers,
        placement: Placement,
        schedule: Schedule,
        image_timeout: float,
        summary: Summary,
        n_workers: int | None,
    ) -> None:
        self._calls = workers
        self._n_workers = n_workers
        self._placement = placement
        self._schedule = schedule
        self._image_timeout = image_timeout
        self._summary = summary
        self._exported_metrics = -math.inf
        self._placed = workers.now()
        self._draining: Set[str] = frozenset()
        self._looked_for_draining = -math.inf
        # Consecutive failures:
        self._failed_starts = 0
        self._failed_attempts = 0  # since the last finished image
        self._storage_errors = 0  # since the last commit
        self._workers = [self._new_worker() for _ in range(min(placement.workers, schedule.unfinished))]

    def run(self, signals: StopSignals) -> None:
        while self._schedule.unfinished:
            self._leave_draining_machines()
            self._assign_shards()
            self._handle_results()
            self._handle_silent_workers()
            self._use_new_machines()
            self._export_metrics()
            if signals.count:
                self._drain(signals)
                if self._schedule.unfinished:
                    raise RunStoppedError(signals.last)
        if failed := self._schedule.failed:
            reasons = "; ".join(reason for _, reason in sorted(failed.items())[:3])
            raise RunFailedError(
                f"{len(failed)} shards failed {MAX_ATTEMPTS} times: {reasons}. "
                "The others are done: run the same command again to retry"
            )

    def close(self) -> None:
        for worker in self._workers:
            self._end(worker)

    def _end(self, worker: _WorkerHandle) -> None:
        self._calls.kill(worker.actor)
        if worker.started is not None:
            self._summary.add_worker(self._calls.now() - worker.started, worker.placement.gpus)

    def _drain(self, signals: StopSignals) -> None:
        """Waits up to DRAIN_SECONDS for the shards in progress, but not for shards that wait for the device."""
        logger.warning(
            "stopping: the shards in progress have %.0f s to finish; a second signal stops at once", DRAIN_SECONDS
        )
        deadline = self._calls.now() + DRAIN_SECONDS
        in_progress = {stream for worker in self._workers for stream, lease in worker.leases.items() if lease.has_begun}
        while signals.count == 1 and self._calls.now() < deadline:
            if not any(in_progress & worker.leases.keys() for worker in self._workers):
                break
            self._handle_results()

    def _new_worker(self) -> _WorkerHandle:
        actor, starting = self._calls.start(self._placement)
        now = self._calls.now()
        return _WorkerHandle(actor, self._placement, starting, last_progress=now, last_report=now)

    def _assign_shards(self) -> None:
        # In rounds: every worker gets its first shard before any gets its second. A worker gets the next shard once the
        # previous one has the device, so shards use the device in the order in which they are sent, and only one reads
        # ahead.
        for held in range(SHARDS_PER_WORKER):
            for worker in self._workers:
                if len(worker.leases) != held or not worker.is_ready:
                    continue
                if (lease := self._schedule.take(idle=held == 0, worker=worker.name)) is None:
                    break  # there is none for the other workers either
                worker.leases[self._calls.process(worker.actor, lease.shard, lease.attempt)] = lease
                if held == 0:
                    worker.last_progress = worker.last_report = self._calls.now()

    def _handle_results(self) -> None:
        """Waits up to a second for results, then handles one result of each worker start or shard that has one."""
        pending = {ref: worker for worker in self._workers for ref in (worker.starting, *worker.leases) if ref}
        pause = min(PAUSE_SECONDS * len(pending), MAX_PAUSE_SECONDS)
        for reference in self._calls.wait(list(pending), timeout=1.0, pause=pause):
            worker = pending[reference]
            if reference == worker.starting:
                self._handle_worker_start(worker)
            elif reference in worker.leases:  # otherwise its worker was replaced in this loop
                self._handle_shard_result(worker, reference)

    def _handle_worker_start(self, worker: _WorkerHandle) -> None:
        try:
            worker.machine, worker.name = self._calls.result(worker.starting)
        except RayError as error:
            if isinstance(error, RayTaskError) and isinstance(error.cause, (CheckpointError, DeviceError)):
                raise error.cause from None
            if worker.unconfirmed:
                self._handle_worker_death(worker, error)
                return
            self._failed_starts += not _is_preempted(error)
            if self._failed_starts == MAX_FAILED_STARTS * len(self._workers):
                raise RunFailedError(f"the workers cannot start: {_reason(error)}") from error
            self._replace(worker)
        else:
            worker.starting = None
            worker.started = worker.started or self._calls.now()
            self._failed_starts = 0
            self._requeue_leases(worker)  # the worker is alive, but its results are lost

    def _handle_shard_result(self, worker: _WorkerHandle, stream: Reference) -> None:
        lease = worker.leases[stream]
        try:
            records = self._calls.next_records(stream)
        except StopIteration:
            del worker.leases[stream]
            self._schedule.finish(lease)
            self._storage_errors = 0
        except RayError as error:
            self._handle_shard_error(worker, stream, error)
        else:
            worker.last_progress = worker.last_report = self._calls.now()
            for record in records:
                if isinstance(record, Overtaken):
                    self._schedule.record_overtaken()
                    continue
                self._schedule.record_progress(lease, record)
                if record.status is not None:
                    self._failed_attempts = 0

    def _handle_shard_error(self, worker: _WorkerHandle, stream: Reference, error: RayError) -> None:
        if isinstance(error, RayTaskError) and isinstance(error.cause, StorageError):
            # The worker itself is intact.
            self._storage_errors += 1
            if self._storage_errors == MAX_STORAGE_ERRORS:
                raise error.cause from None
            self._record_failure(worker.leases.pop(stream), _reason(error))
        elif isinstance(error, RayTaskError) and isinstance(error.cause, EngineFailedError):
            # The error of the shard that is the cause may arrive after this one.
            self._schedule.requeue(worker.leases.pop(stream))
        elif isinstance(error, RayTaskError):
            self._replace(worker, [worker.leases.pop(stream)], _reason(error))
        else:
            # All shards of the worker fail together.
            worker.unconfirmed = list(worker.leases.values())
            worker.leases.clear()
            self._handle_worker_death(worker, error)

    def _handle_worker_death(self, worker: _WorkerHandle, error: RayError) -> None:
        if isinstance(error, ActorUnavailableError):
            # Ray does not know yet whether the worker or its machine is dead. The result of this call will show it.
            worker.starting = self._calls.place(worker.actor)
        elif _is_preempted(error) or worker.machine not in self._calls.machines():
            logger.warning("a machine is gone: its shards are tried again", extra={"worker": worker.name})
            self._summary.preemptions += worker.finishing is None
            self._replace(worker)
        else:
            # Any of these shards may be the cause: while one is inferred, others are decoded or committed.
            suspects, worker.unconfirmed = worker.unconfirmed, []
            self._replace(worker, suspects, _reason(error))

    def _replace(self, worker: _WorkerHandle, suspects: Sequence[Lease] = (), reason: str = "") -> None:
        """Replaces a worker by a new one, unless that was started before.

        Records a failure for each suspect, and requeues the other shards.
        """
        for lease in suspects:
            self._record_failure(lease, reason)
        if suspects:
            self._failed_attempts += 1
            if self._failed_attempts > MAX_FAILED_ATTEMPTS * len(self._workers):
                raise RunFailedError(f"the workers fail before they end an image: {reason}")
        self._requeue_leases(worker)
        self._end(worker)
        self._workers.remove(worker)
        if worker.finishing is None:
            self._workers.append(self._new_worker())

    def _record_failure(self, lease: Lease, reason: str) -> None:
        self._summary.retries += 1
        self._schedule.record_failure(lease, reason)

    def _requeue_leases(self, worker: _WorkerHandle) -> None:
        for lease in (*worker.unconfirmed, *worker.leases.values()):
            self._schedule.requeue(lease)
        worker.unconfirmed.clear()
        worker.leases.clear()

    def _handle_silent_workers(self) -> None:
        """Logs a warning for workers without progress. Replaces a worker after `image_timeout` seconds."""
        now = self._calls.now()
        for worker in list(self._workers):
            suspect = next(iter(worker.leases), None)
            if suspect and now - worker.last_progress > self._image_timeout:
                self._replace(worker, [worker.leases.pop(suspect)], f"no progress for {self._image_timeout:.0f} s")
            elif (suspect or worker.starting) and now - worker.last_report > self._image_timeout / WARNINGS_PER_TIMEOUT:
                worker.last_report = now
                request = f"{worker.placement.cpus} CPUs and {worker.placement.gpus:g} GPUs"
                starting = f"a worker is starting: does any machine have {request} free?"
                what = worker.leases[suspect].description if suspect else starting
                extra = worker.leases[suspect].log_fields if suspect else {}
                logger.warning("%s: no progress for %.0f s", what, now - worker.last_progress, extra=extra)

    def _leave_draining_machines(self) -> None:
        """Replaces workers on draining machines. They end once their shards in progress are finished.

        A shard that still waits for the device is requeued then.
        """
        now = self._calls.now()
        if now - self._looked_for_draining >= DRAINING_SECONDS:
            self._looked_for_draining = now
            self._draining = self._calls.draining()
        for worker in [worker for worker in self._workers if worker.machine in self._draining]:
            if worker.finishing is None:
                worker.finishing = {lease for lease in worker.leases.values() if lease.has_begun}
                self._workers.append(self._new_worker())  # Ray keeps it pending until another machine has room
                self._summary.preemptions += 1
                logger.warning("a machine will be removed: it gets no more shards", extra={"worker": worker.name})
            if worker.finishing.isdisjoint(worker.leases.values()):
                self._replace(worker)

    def _use_new_machines(self) -> None:
        now = self._calls.now()
        if now - self._placed < PLACEMENT_SECONDS:
            return
        self._placed = now
        self._end_surplus_workers()
        with suppress(DeviceError, RunFailedError):  # no machine is available: the workers wait
            # Keeps the device of the start of the run, also for "auto": a run that began on GPUs waits for GPUs.
            machines = list(self._calls.machines().values())
            device = "cuda" if self._placement.gpus else "cpu"
            self._placement = place(machines, device, self._placement.gpus, self._n_workers)
            for worker in list(self._workers):
                # This worker waits for more CPUs per worker than a new machine has.
                if not worker.machine and worker.placement.cpus > self._placement.cpus:
                    self._replace(worker)
            room = min(self._placement.workers, self._schedule.unfinished)
            self._workers += [self._new_worker() for _ in range(room - len(self._workers))]

    def _export_metrics(self) -> None:
        now = self._calls.now()
        if now - self._exported_metrics < METRICS_SECONDS:
            return
        self._exported_metrics = now
        at_workers = {lease.shard.index for worker in self._workers for lease in worker.leases.values()}
        waiting = max(0, self._schedule.unfinished - len(at_workers))
        ready = sum(worker.started is not None for worker in self._workers)
        self._calls.export(
            shards={"at workers": len(at_workers), "waiting": waiting},
            workers={"ready": ready, "starting": len(self._workers) - ready},
        )

    def _end_surplus_workers(self) -> None:
        """Ends workers without shards if more workers than unfinished shards exist, so that machines can be removed.

        Workers that wait for a machine come first: the autoscaler would start one for them.
        """
        surplus = max(0, len(self._workers) - self._schedule.unfinished)
        without_shards = [worker for worker in self._workers if not (worker.leases or worker.unconfirmed)]
        for worker in sorted(without_shards, key=lambda worker: bool(worker.machine))[:surplus]:
            self._end(worker)
            self._workers.remove(worker)


def _is_preempted(error: RayError) -> bool:
    """Whether a worker died because its machine was removed after a notice."""
    return isinstance(error, RayActorError) and error.preempted


def _reason(error: RayError) -> str:
    """The error message of Ray in one line."""
    if isinstance(error, RayTaskError) and not isinstance(error.cause, RayError):
        return failure_reason(error.cause)
    if isinstance(error, OutOfMemoryError):
        return "its machine ran out of memory"
    if isinstance(error, RayActorError) and not error.actor_init_failed:
        return "the worker died"
    return exception_line(str(error))
