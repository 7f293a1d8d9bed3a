"""Shards onto a Ray cluster: actors, the driver's loop, what happens when something dies. The only import of ray."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import cv2
import ray
import torch
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, RayActorError, RayError, RayTaskError
from ray.util import metrics

from model.errors import CheckpointError, DeviceError
from pipeline.errors import RunFailedError
from pipeline.placement import Placement, place
from pipeline.plan import Plan
from pipeline.records import Shard
from pipeline.worker import Engine, Job, OnCommit, OnProgress, Progress, process_shard

MAX_ATTEMPTS = 3
SHARDS_PER_WORKER = 2  # the second waits at the actor, so that it never waits for the driver
STALL_SECONDS = 300.0
# So many workers lost for each one there is, and no image ended in between: the fault lies in none of the shards.
HOPELESS_LOSSES = 10
# Only progress records pass through it. Ray's default is a third of the memory, more than a container may have.
OBJECT_STORE_BYTES = 100 * 2**20

Stream = Any  # ray.ObjectRefGenerator, of which type checkers see nothing

logger = logging.getLogger(__name__)


def run(
    job: Job,
    plan: Plan,
    on_progress: OnProgress,
    on_commit: OnCommit = lambda _: None,
    device: str = "auto",
    address: str | None = None,
    stall_seconds: float = STALL_SECONDS,
) -> None:
    """Commits a part for every shard of the plan. Local without an address: a cluster of one machine, gone afterwards.

    A shard whose worker dies or raises is tried MAX_ATTEMPTS times while the others go on. `on_progress` is told once
    of each image that ended, `on_commit` of each shard. Failed attempts, and workers that say nothing for
    `stall_seconds`, are logged as warnings.

    Raises RunFailedError, when everything else is done, if there are shards that could not be done, and at once where
    the cluster cannot be reached; CheckpointError and DeviceError where a worker cannot make its engine. Whatever ends
    it, what is committed stands: another run goes on from there.
    """
    with _session(address):
        placement = place([node["Resources"] for node in ray.nodes() if node["Alive"]], device)
        driver = _Driver(job, placement, plan, on_progress, on_commit, stall_seconds)
        try:
            driver.run()
        finally:
            driver.close()


@contextmanager
def _session(address: str | None) -> Iterator[None]:
    if ray.is_initialized():
        yield
        return
    if address:
        _check_address(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    logging.getLogger("ray").setLevel(logging.ERROR)
    local = {} if address else {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    try:
        ray.init(address=address or "local", configure_logging=False, log_to_driver=False, **local)
    except (ConnectionError, ValueError) as error:
        raise RunFailedError(f"no Ray cluster at {address}: {str(error).splitlines()[0]}") from error
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
    """The actor: one engine, one shard at a time."""

    def __init__(self, job: Job, threads: int) -> None:
        torch.set_num_threads(threads)
        cv2.setNumThreads(threads)
        self._job = job
        self._engine: Engine | None = None
        self._images = metrics.Counter("maskmill_images", "Images by what became of them.", tag_keys=("status",))
        self._masks = metrics.Counter("maskmill_masks", "Masks found.")

    def process(self, shard: Shard, attempt: int) -> Iterator[Progress]:
        # Not in __init__: what that raises reaches the driver as text only.
        self._engine = self._engine or self._job.make_engine()
        for progress in process_shard(self._job, self._engine, shard, attempt):
            if progress.status is not None:
                self._images.inc(tags={"status": progress.status})
            if progress.n_masks > 0:
                self._masks.inc(progress.n_masks)
            yield progress


@dataclass(eq=False)
class _Lease:
    """A shard that is at a worker."""

    shard: Shard
    worker: _WorkerHandle
    stream: Stream
    image_id: str | None = None  # the last one that was begun
    ended: int = 0  # images


@dataclass(eq=False)
class _WorkerHandle:
    """An actor and the shards it holds, in the order in which it does them."""

    actor: ActorHandle
    leases: list[_Lease] = field(default_factory=list)
    heard: float = 0.0  # when it last told of progress, or was last reported for not doing so


class _Driver:
    """The state of a run: what is where, what is done, what has failed how often."""

    def __init__(
        self, job: Job, placement: Placement, plan: Plan, on_progress: OnProgress, on_commit: OnCommit, stall: float
    ) -> None:
        self._job = job
        self._placement = placement
        self._on_progress = on_progress
        self._on_commit = on_commit
        self._stall_seconds = stall
        self._n_shards = len(plan)
        self._fresh = iter(plan)
        self._again: list[Shard] = []
        self._done: set[int] = set()
        self._attempts: Counter[int] = Counter()  # that failed
        self._losses = 0  # since an image ended
        self._failed: dict[int, str] = {}  # shard -> why, after the last attempt
        self._ended: defaultdict[int, set[str]] = defaultdict(set)  # shard -> images that on_progress was told of
        self._leases: dict[Stream, _Lease] = {}
        self._workers = [_WorkerHandle(self._new_actor()) for _ in range(min(placement.workers, len(plan)))]

    def run(self) -> None:
        self._hand_out()
        while any(lease.shard.index not in self._done for lease in self._leases.values()):
            ready, _ = ray.wait(list(self._leases), timeout=1.0, fetch_local=False)
            for stream in ready:
                self._advance(self._leases[stream])
            self._report_stalls()
            self._hand_out()
        if self._failed:
            reasons = "; ".join(f"shard {index:05d} {reason}" for index, reason in sorted(self._failed.items())[:3])
            raise RunFailedError(
                f"{len(self._failed)} of {self._n_shards} shards failed {MAX_ATTEMPTS} times: {reasons}. "
                "The others are done: run the same command again to retry"
            )

    def close(self) -> None:
        for worker in self._workers:
            ray.kill(worker.actor)

    def _new_actor(self) -> ActorHandle:
        actor_class: Any = ray.remote(_Worker)
        return actor_class.options(
            num_cpus=self._placement.cpus, num_gpus=self._placement.gpus, max_restarts=-1, max_task_retries=0
        ).remote(self._job, self._placement.threads)

    def _hand_out(self) -> None:
        # In rounds, so that every worker has a shard before one has two.
        for held in range(SHARDS_PER_WORKER):
            for worker in self._workers:
                if len(worker.leases) == held and (shard := self._next_shard(worker)):
                    stream = worker.actor.process.options(num_returns="streaming").remote(
                        shard, self._attempts[shard.index] + 1
                    )
                    if held == 0:
                        worker.heard = time.monotonic()
                    lease = _Lease(shard, worker, stream)
                    worker.leases.append(lease)
                    self._leases[stream] = lease

    def _next_shard(self, worker: _WorkerHandle) -> Shard | None:
        if shard := next(self._fresh, None):
            return shard
        if self._again:
            return self._again.pop(0)
        return None if worker.leases else self._slowest()

    def _slowest(self) -> Shard | None:
        """The shard that is furthest from done and at one worker only: whoever is faster commits it.

        None that has failed before, as it may take its worker with it.
        """
        copies = Counter(lease.shard.index for lease in self._leases.values())
        candidates = [
            lease
            for lease in self._leases.values()
            if copies[lease.shard.index] == 1
            and lease.shard.index not in self._done
            and not self._attempts[lease.shard.index]
        ]
        return min(candidates, key=lambda lease: lease.ended).shard if candidates else None

    def _advance(self, lease: _Lease) -> None:
        """Takes the next thing that a worker says of a shard."""
        try:
            progress: Any = ray.get(next(lease.stream))
        except StopIteration:
            self._finish(lease)
        except RayError as error:
            self._lose(lease, error)
        else:
            lease.worker.heard = time.monotonic()
            lease.image_id = progress.image_id
            if progress.status is not None:
                lease.ended += 1
                self._losses = 0
                # A second copy or attempt tells of the same images again.
                if progress.shard not in self._done and progress.image_id not in self._ended[progress.shard]:
                    self._ended[progress.shard].add(progress.image_id)
                    self._on_progress(progress)

    def _finish(self, lease: _Lease) -> None:
        lease.worker.leases.remove(lease)
        del self._leases[lease.stream]
        index = lease.shard.index
        if index not in self._done:
            self._done.add(index)
            self._ended.pop(index, None)
            self._failed.pop(index, None)
            self._job.ledger.publish_images(lease.shard.name)
            self._on_commit(lease.shard)

    def _lose(self, lease: _Lease, error: RayError) -> None:
        """A worker died, or raised what leaves it in doubt: replaces it, and does the shards it held again."""
        worker = lease.worker
        if isinstance(error, RayTaskError) and isinstance(error.cause, (CheckpointError, DeviceError)):
            raise error.cause from None
        if isinstance(error, ActorDiedError) and error.actor_init_failed:
            raise RunFailedError(f"the workers cannot start: {str(error).strip().splitlines()[-1]}") from error
        self._losses += 1
        if self._losses > HOPELESS_LOSSES * len(self._workers):
            raise RunFailedError(f"the workers fail before they end an image: {_reason(error)}")
        preempted = isinstance(error, RayActorError) and error.preempted
        if not preempted:
            # When a worker dies, the shards that wait at it fail too.
            self._count_attempt(lease if isinstance(error, RayTaskError) else worker.leases[0], _reason(error))
        for held in worker.leases:
            del self._leases[held.stream]
        elsewhere = {other.shard.index for other in self._leases.values()}
        settled = self._done | self._failed.keys() | elsewhere
        self._again += [held.shard for held in worker.leases if held.shard.index not in settled]
        worker.leases = []
        ray.kill(worker.actor)
        worker.actor = self._new_actor()

    def _count_attempt(self, lease: _Lease, reason: str) -> None:
        index = lease.shard.index
        if index in self._done:
            return
        self._attempts[index] += 1
        where = f"at or near image {lease.image_id}" if lease.image_id else "before its first image"
        logger.warning("shard %05d: attempt %d failed %s: %s", index, self._attempts[index], where, reason)
        if self._attempts[index] == MAX_ATTEMPTS:
            self._failed[index] = f"{where} ({reason})"

    def _report_stalls(self) -> None:
        now = time.monotonic()
        for worker in self._workers:
            if worker.leases and now - worker.heard > self._stall_seconds:
                worker.heard = now
                lease = worker.leases[0]
                where = f"image {lease.image_id}" if lease.image_id else "no image yet: is there a free machine for it?"
                logger.warning("shard %05d: no progress for %.0f s (%s)", lease.shard.index, self._stall_seconds, where)


def _reason(error: RayError) -> str:
    """One line of what Ray says at length."""
    if isinstance(error, RayTaskError):
        return f"{type(error.cause).__name__}: {' '.join(str(error.cause).split())}"
    if isinstance(error, RayActorError):
        return "the worker died"
    return " ".join(str(error).split())[:300]
