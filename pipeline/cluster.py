"""Shards onto a Ray cluster: actors, the driver's loop, what happens when something dies. The only import of ray."""

from __future__ import annotations

import logging
import math
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import cv2
import ray
import torch
from ray._raylet import setproctitle  # pyright: ignore[reportAttributeAccessIssue]
from ray.actor import ActorHandle
from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayActorError, RayError, RayTaskError
from ray.util import metrics

from maskmill.model.errors import CheckpointError, DeviceError
from maskmill.pipeline.engine import Engine
from maskmill.pipeline.errors import RunFailedError, RunStoppedError, StorageError, exception_line, one_line_cause
from maskmill.pipeline.local_ray import local_environment
from maskmill.pipeline.placement import Machine, Placement, place
from maskmill.pipeline.plan import Plan
from maskmill.pipeline.progress import Attempt, OnCommit, OnProgress, Progress
from maskmill.pipeline.records import Shard
from maskmill.pipeline.schedule import MAX_ATTEMPTS, Lease, Schedule
from maskmill.pipeline.signals import StopSignals
from maskmill.pipeline.worker import MAX_REASON_CHARACTERS, Job, process_shard

SHARDS_PER_WORKER = 3  # one is committed, one is inferred, and images of the next are read ahead
MAX_AHEAD = 8  # images that are decoded at once: a small part of what a large machine could
DRAIN_SECONDS = 25.0  # containers get thirty after their SIGTERM
PROGRESS_SECONDS = 1.0  # between two words of one worker
PLACEMENT_SECONDS = 5.0  # between two looks for new machines
REPORTS_OF_SILENCE = 6  # before a worker is given up
# So many in a row end the run: the fault lies in none of the shards.
HOPELESS_STARTS = 3  # for each worker
HOPELESS_LOSSES = 10  # for each worker, without an image that ended
HOPELESS_STORAGE_ERRORS = SHARDS_PER_WORKER + 2  # without a commit; a worker may lose all its shards at once
# Only progress records pass through it. Ray's default is a third of the memory, more than a container may have.
OBJECT_STORE_BYTES = 100 * 2**20

Reference = Any  # ray.ObjectRef or ray.ObjectRefGenerator, of which type checkers see nothing

logger = logging.getLogger(__name__)


def run(
    job: Job,
    shards: Plan | list[Shard],
    on_progress: OnProgress,
    on_commit: OnCommit = lambda _: None,
    device: str = "auto",
    address: str | None = None,
    image_timeout: float = 1800.0,
) -> None:
    """Commits a part for every shard. Local without an address: a cluster of one machine, gone afterwards.

    A shard whose worker dies, raises or says nothing for `image_timeout` seconds is done again, image by image; an
    image that takes its worker with it twice then is quarantined. Lost machines are nobody's fault. `on_progress` is
    told once of each image that ended, `on_commit` of each shard. Failed attempts and silence are logged as warnings.

    On SIGINT and SIGTERM no more shards are handed out, those at work have DRAIN_SECONDS to end, and RunStoppedError is
    raised; a second signal stops at once. Raises RunFailedError, when everything else is done, if there are shards that
    could not be done, and at once where the cluster or the store cannot be reached; CheckpointError and DeviceError
    where a worker cannot make its engine. Whatever ends it, what is committed stands: another run goes on from there.
    """
    with _session(address), StopSignals() as signals:
        placement = place(list(_machines().values()), device)
        driver = _Driver(job, placement, Schedule(shards, on_progress, on_commit), image_timeout)
        try:
            driver.run(signals)
        finally:
            driver.close()


def _machines() -> dict[str, Machine]:
    """The machines that are alive, by Ray's node id."""
    return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}


@contextmanager
def _session(address: str | None) -> Iterator[None]:
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
def _connection(trouble: str, remedy: str = "", **options: Any) -> Iterator[None]:
    try:
        "".join(sys.argv).encode()
    except UnicodeEncodeError:  # Ray sends the command line to the cluster, and fails where it is not UTF-8
        setproctitle("maskmill")
    try:
        ray.init(configure_logging=False, log_to_driver=False, **options)
    except (OSError, RuntimeError, ValueError, RayError) as error:
        raise RunFailedError(f"{trouble}: {exception_line(str(error))}{remedy}") from error
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
            socket.create_connection((host, int(port)), timeout=10).close()  # Ray itself tries for minutes
        except OSError as error:
            raise RunFailedError(f"no Ray cluster at {address}: {error}") from error


class _Worker:
    """The actor: one engine, on which shards take turns. It is called from SHARDS_PER_WORKER threads."""

    def __init__(self, job: Job, placement: Placement) -> None:
        threads = placement.threads_on(_machines()[self.machine()])
        torch.set_num_threads(threads)
        cv2.setNumThreads(threads)
        self._job = job
        self._ahead = min(max(2, threads), MAX_AHEAD)
        self._device_lock = threading.Lock()
        self._engine: Engine | None = None
        self._images = metrics.Counter("maskmill_images", "Images by what became of them.", tag_keys=("status",))
        self._masks = metrics.Counter("maskmill_masks", "Masks found.")

    def start(self) -> str:
        """Makes the engine, and tells which machine this is."""
        # Not in __init__: what that raises reaches the driver as text only.
        self._engine = self._job.make_engine()
        return self.machine()

    def machine(self) -> str:
        """Which machine this is."""
        return ray.get_runtime_context().get_node_id()

    def process(self, shard: Shard, attempt: Attempt) -> Iterator[list[Progress]]:
        """Yields progress: at once when the shard has the device, then in batches every PROGRESS_SECONDS.

        An isolated attempt yields each record at once.
        """
        assert self._engine is not None, "started"
        unsent: list[Progress] = []
        last = -math.inf
        for progress in process_shard(self._job, self._engine, shard, attempt, self._device_lock, self._ahead):
            if progress.status is not None:
                self._images.inc(tags={"status": progress.status})
            if progress.n_masks > 0:
                self._masks.inc(progress.n_masks)
            unsent.append(progress)
            if attempt.isolated or time.monotonic() - last >= PROGRESS_SECONDS:
                yield unsent
                unsent, last = [], time.monotonic()
        yield unsent


@dataclass(eq=False)
class _WorkerHandle:
    """An actor and the shards it holds, in the order in which it infers them."""

    actor: ActorHandle
    placement: Placement  # what it requested
    starting: Reference  # its answer to the question where it is, with its engine; None once that is there
    machine: str = ""
    leases: dict[Reference, Lease] = field(default_factory=dict[Reference, Lease])
    unconfirmed: list[Lease] = field(default_factory=list[Lease])  # its shards when Ray reported it unavailable
    last_progress: float = field(default_factory=time.monotonic)  # time of the last record, or of its first shard
    last_report: float = field(default_factory=time.monotonic)  # time of the last record or warning

    @property
    def is_ready(self) -> bool:
        """Whether another shard may be sent to it: not while one waits for the device or is an isolated attempt."""
        return not self.starting and all(
            lease.has_begun and not lease.attempt.isolated for lease in self.leases.values()
        )


class _Driver:
    """The workers of a run, and what they are at."""

    def __init__(self, job: Job, placement: Placement, schedule: Schedule, image_timeout: float) -> None:
        self._job = job
        self._placement = placement
        self._schedule = schedule
        self._image_timeout = image_timeout
        self._placed = time.monotonic()
        # In a row, which is how it shows that the fault lies in none of the shards:
        self._failed_starts = 0
        self._losses = 0  # without an image that ended
        self._storage_errors = 0  # without a commit
        self._workers = [self._new_worker() for _ in range(min(placement.workers, schedule.unfinished))]

    def run(self, signals: StopSignals) -> None:
        while self._schedule.unfinished:
            self._assign_shards()
            self._handle_results()
            self._handle_silent_workers()
            self._use_new_machines()
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
            ray.kill(worker.actor)

    def _drain(self, signals: StopSignals) -> None:
        """Gives the shards at work some time to end, but not those that wait for their turn."""
        logger.warning("stopping: the shards at work have %.0f s to end; once more stops at once", DRAIN_SECONDS)
        deadline = time.monotonic() + DRAIN_SECONDS
        at_work = {stream for worker in self._workers for stream, lease in worker.leases.items() if lease.has_begun}
        while signals.count == 1 and time.monotonic() < deadline:
            if not any(at_work & worker.leases.keys() for worker in self._workers):
                break
            self._handle_results()

    def _new_worker(self) -> _WorkerHandle:
        actor_class: Any = ray.remote(_Worker)
        actor = actor_class.options(
            num_cpus=self._placement.cpus,
            num_gpus=self._placement.gpus,
            max_restarts=0,  # the driver replaces it, and so knows when and on which machine the new one has started
            max_task_retries=0,
            max_concurrency=SHARDS_PER_WORKER,
        ).remote(self._job, self._placement)
        return _WorkerHandle(actor, self._placement, actor.start.remote())

    def _assign_shards(self) -> None:
        # In rounds, so that every worker has a shard before one has two. The next one is sent when the last one has its
        # turn: so they take turns in the order in which they are sent, and only one at a time is read ahead.
        for held in range(SHARDS_PER_WORKER):
            for worker in self._workers:
                if not worker.is_ready or len(worker.leases) != held:
                    continue
                if lease := self._schedule.take(idle=held == 0):
                    process = worker.actor.process.options(
                        num_returns="streaming",
                        # In an isolated attempt a worker waits until the driver has received each record.
                        _generator_backpressure_num_objects=1 if lease.attempt.isolated else None,
                    )
                    worker.leases[process.remote(lease.shard, lease.attempt)] = lease
                    if held == 0:
                        worker.last_progress = worker.last_report = time.monotonic()

    def _handle_results(self) -> None:
        """Waits up to a second for news, and takes one piece from each shard that has any."""
        waiting = {ref: worker for worker in self._workers for ref in (worker.starting, *worker.leases) if ref}
        ray.wait(list(waiting), timeout=1.0, fetch_local=False)
        news, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=0, fetch_local=False)
        for reference in news:
            worker = waiting[reference]
            if reference == worker.starting:
                self._handle_worker_start(worker)
            elif reference in worker.leases:  # else it was lost a moment ago, together with its worker
                self._handle_shard_result(worker, reference)

    def _handle_worker_start(self, worker: _WorkerHandle) -> None:
        try:
            worker.machine = ray.get(worker.starting)
        except RayError as error:
            if isinstance(error, RayTaskError) and isinstance(error.cause, (CheckpointError, DeviceError)):
                raise error.cause from None
            if worker.unconfirmed:
                self._handle_worker_death(worker, error)
                return
            self._failed_starts += 1
            if self._failed_starts == HOPELESS_STARTS * len(self._workers):
                raise RunFailedError(f"the workers cannot start: {_reason(error)}") from error
            self._replace(worker)
        else:
            worker.starting = None
            self._failed_starts = 0
            self._requeue_leases(worker)  # the worker is alive, but its results are lost

    def _handle_shard_result(self, worker: _WorkerHandle, stream: Reference) -> None:
        lease = worker.leases[stream]
        try:
            news: list[Progress] = ray.get(next(stream))
        except StopIteration:
            del worker.leases[stream]
            self._schedule.finish(lease)
            self._storage_errors = 0
        except RayError as error:
            self._handle_shard_error(worker, stream, error)
        else:
            worker.last_progress = worker.last_report = time.monotonic()
            for progress in news:
                self._schedule.record_progress(lease, progress)
                if progress.status is not None:
                    self._losses = 0

    def _handle_shard_error(self, worker: _WorkerHandle, stream: Reference, error: RayError) -> None:
        if isinstance(error, RayTaskError) and isinstance(error.cause, StorageError):
            # The worker is as good as before.
            self._storage_errors += 1
            if self._storage_errors == HOPELESS_STORAGE_ERRORS:
                raise error.cause from None
            self._schedule.record_failure(worker.leases.pop(stream), _reason(error))
        elif isinstance(error, RayTaskError):
            self._replace(worker, [worker.leases.pop(stream)], _reason(error))
        else:
            # All the shards it held fail together.
            worker.unconfirmed = list(worker.leases.values())
            worker.leases.clear()
            self._handle_worker_death(worker, error)

    def _handle_worker_death(self, worker: _WorkerHandle, error: RayError) -> None:
        if isinstance(error, ActorUnavailableError):
            # Ray does not know yet whether the worker is dead, or its machine: it will when it answers this.
            worker.starting = worker.actor.machine.remote()
        elif (isinstance(error, RayActorError) and error.preempted) or worker.machine not in _machines():
            logger.warning("a machine is gone: what it was at is done again")
            self._replace(worker)
        else:
            # Any of them may have done it: its images are decoded while others are inferred or committed.
            suspects, worker.unconfirmed = worker.unconfirmed, []
            self._replace(worker, suspects, _reason(error))

    def _replace(self, worker: _WorkerHandle, suspects: Sequence[Lease] = (), reason: str = "") -> None:
        """Gives up a worker, because of shards that were taken from it or through the fault of none."""
        for lease in suspects:
            self._schedule.record_failure(lease, reason)
        if suspects:
            self._losses += 1
            if self._losses > HOPELESS_LOSSES * len(self._workers):
                raise RunFailedError(f"the workers fail before they end an image: {reason}")
        self._requeue_leases(worker)
        ray.kill(worker.actor)
        self._workers[self._workers.index(worker)] = self._new_worker()

    def _requeue_leases(self, worker: _WorkerHandle) -> None:
        for lease in (*worker.unconfirmed, *worker.leases.values()):
            self._schedule.requeue(lease)
        worker.unconfirmed.clear()
        worker.leases.clear()

    def _handle_silent_workers(self) -> None:
        """Tells of workers that are silent, and gives up those that have been for too long."""
        now = time.monotonic()
        for worker in list(self._workers):
            culprit = next(iter(worker.leases), None)
            if culprit and now - worker.last_progress > self._image_timeout:
                self._replace(worker, [worker.leases.pop(culprit)], f"no progress for {self._image_timeout:.0f} s")
            elif (culprit or worker.starting) and now - worker.last_report > self._image_timeout / REPORTS_OF_SILENCE:
                worker.last_report = now
                request = f"{worker.placement.cpus} CPUs and {worker.placement.gpus} GPUs"
                starting = f"a worker that starts: does any machine have {request} free for it?"
                what = worker.leases[culprit].whereabouts if culprit else starting
                logger.warning("%s: no progress for %.0f s", what, now - worker.last_progress)

    def _use_new_machines(self) -> None:
        now = time.monotonic()
        if now - self._placed < PLACEMENT_SECONDS:
            return
        self._placed = now
        with suppress(DeviceError, RunFailedError):  # no machine at all: the workers wait for one
            # Not the device that the user named: a run that began on GPUs waits for GPUs.
            self._placement = place(list(_machines().values()), "cuda" if self._placement.gpus else "cpu")
            for worker in list(self._workers):
                # It waits for a machine and requests more CPUs than a machine that came meanwhile has for it.
                if not worker.machine and worker.placement.cpus > self._placement.cpus:
                    self._replace(worker)
            room = min(self._placement.workers, self._schedule.unfinished)
            self._workers += [self._new_worker() for _ in range(room - len(self._workers))]


def _reason(error: RayError) -> str:
    """One line of what Ray says at length."""
    if isinstance(error, RayTaskError) and not isinstance(error.cause, RayError):
        return f"{type(error.cause).__name__}: {one_line_cause(error.cause, MAX_REASON_CHARACTERS)}"
    if isinstance(error, OutOfMemoryError):
        return "its machine ran out of memory"
    if isinstance(error, RayActorError) and not error.actor_init_failed:
        return "the worker died"
    return exception_line(str(error))
