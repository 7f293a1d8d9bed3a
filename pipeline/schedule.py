"""Assigns shards to workers, and counts failures for retry and quarantine. Does not depend on Ray."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from maskmill.pipeline.progress import Attempt, OnCommit, OnProgress, Progress
from maskmill.pipeline.records import Failure, Shard
from maskmill.pipeline.walk import Walk

MAX_ATTEMPTS = 3  # failed attempts at a shard that no image can be blamed for
# An image is quarantined after so many failed isolated attempts at it. The first attempt at a shard processes several
# images at once, so its failure cannot be attributed to one of them.
MAX_DEATHS = 2

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Lease:
    """A shard assigned to a worker."""

    shard: Shard
    attempt: Attempt
    worker: str = ""  # its name
    current: Progress | None = None  # the image in progress and its step
    finished: int = 0  # images

    @property
    def has_begun(self) -> bool:
        """Whether the worker has reported progress."""
        return self.current is not None or self.finished > 0

    @property
    def description(self) -> str:
        """The shard and, for an isolated attempt, the image in progress and its step."""
        at = f", step {self.current.step} of {self.current.image_id}" if self.current and self.attempt.isolated else ""
        return f"shard {self.shard.name}{at}"

    @property
    def log_fields(self) -> dict[str, object]:
        """The attributes of log records about this lease."""
        return {"shard": self.shard.name, "attempt": self.attempt.number, "worker": self.worker}


@dataclass(eq=False)
class _History:
    """The failed attempts at one shard."""

    failures: int = 0
    unattributed: int = 0  # failures that no image is blamed for
    deaths: Counter[str] = field(default_factory=Counter[str])  # image -> failures it is blamed for
    quarantined: dict[str, Failure] = field(default_factory=dict[str, Failure])


class Schedule:
    """The state of a run: assigned, finished and failed shards.

    Shards are assigned in order, then shards of failed attempts, then second copies of the slowest shards. After a
    failed attempt a shard is assigned to a worker without other shards, so that the cause of another failure is known.
    `on_progress` is called once for each finished image, `on_commit` once for each committed shard.
    """

    def __init__(self, shards: Walk | list[Shard], on_progress: OnProgress, on_commit: OnCommit) -> None:
        self._shards = shards
        self._fresh = iter(shards)
        self._on_progress = on_progress
        self._on_commit = on_commit
        self._requeued: list[Shard] = []
        self._leases: dict[Lease, None] = {}  # in the order in which they were assigned
        self._done: set[int] = set()
        # Shards that a copy found committed. The worker that committed them has not finished reporting.
        self._committed: set[int] = set()
        self._histories: defaultdict[int, _History] = defaultdict(_History)
        self._reported_images: defaultdict[int, set[str]] = defaultdict(set)  # shard -> images passed to on_progress
        self.failed: dict[int, str] = {}  # shard -> reason of the last failure

    @property
    def unfinished(self) -> int:
        """The number of shards that are neither done, here or by another driver, nor failed."""
        skipped = self._shards.skipped if isinstance(self._shards, Walk) else 0
        return len(self._shards) - skipped - len(self._done) - len(self.failed)

    def take(self, idle: bool, worker: str = "") -> Lease | None:
        """Assigns a shard to a worker. Returns None if there is none for it.

        Only an `idle` worker, one without shards, gets a shard after a failed attempt or a copy of another worker's
        shard.
        """
        shard = next(self._fresh, None) or self._next_requeued(idle) or (self._slowest() if idle else None)
        if shard is None:
            return None
        history = self._histories.get(shard.index, _History())
        lease = Lease(shard, Attempt(history.failures + 1, dict(history.quarantined)), worker)
        self._leases[lease] = None
        return lease

    def _next_requeued(self, idle: bool) -> Shard | None:
        shard = next((shard for shard in self._requeued if idle or shard.index not in self._histories), None)
        if shard:
            self._requeued.remove(shard)
        return shard

    def _slowest(self) -> Shard | None:
        """The shard with the fewest finished images that is assigned to one worker only. The faster worker commits it.

        Shards with failed attempts are excluded, because they may crash the second worker too.
        """
        copies = Counter(lease.shard.index for lease in self._leases)
        candidates = [
            lease
            for lease in self._leases
            if copies[lease.shard.index] == 1
            and lease.shard.index not in self._done
            and lease.shard.index not in self._committed
            and lease.shard.index not in self._histories
        ]
        return min(candidates, key=lambda lease: lease.finished).shard if candidates else None

    def record_progress(self, lease: Lease, progress: Progress) -> None:
        """Records progress that a worker reported. Calls `on_progress` once for each finished image."""
        if progress.status is None:
            lease.current = progress
            return
        lease.current = None
        lease.finished += 1
        # A second copy or attempt reports the same images again.
        reported = self._reported_images[progress.shard]
        if progress.shard not in self._done and progress.image_id not in reported:
            reported.add(progress.image_id)
            self._on_progress(progress)

    def record_overtaken(self) -> None:
        """Records that another worker, perhaps of another driver, committed a shard first."""
        if isinstance(self._shards, Walk):
            self._shards.jump()

    def finish(self, lease: Lease) -> None:
        """Ends a lease: its worker reported that the shard is committed, by itself or by another worker."""
        del self._leases[lease]
        index = lease.shard.index
        if lease.finished == 0 and index in self._assigned():
            self._committed.add(index)  # by another worker, which will report the images
            return
        if index not in self._done:
            self._done.add(index)
            self._reported_images.pop(index, None)
            self._on_commit(lease.shard)

    def record_failure(self, lease: Lease, reason: str) -> None:
        """Ends a lease: its worker died, hung or raised. Blames the image in progress if the attempt was isolated."""
        if lease.shard.index not in self._done:
            self._blame(lease, reason)
        self.requeue(lease)

    def _blame(self, lease: Lease, reason: str) -> None:
        history = self._histories[lease.shard.index]
        history.failures += 1
        fields = lease.log_fields
        logger.warning("%s: attempt %d failed: %s", lease.description, history.failures, reason, extra=fields)
        if lease.current and lease.attempt.isolated:
            image_id = lease.current.image_id
            history.deaths[image_id] += 1
            if history.deaths[image_id] == MAX_DEATHS:
                failure = Failure(lease.current.step, f"{MAX_DEATHS} workers failed at this image: {reason}")
                history.quarantined[image_id] = failure
                extra = {**fields, "image_id": image_id}
                logger.warning("shard %s: %s is quarantined", lease.shard.name, image_id, extra=extra)
            return
        history.unattributed += 1
        if history.unattributed == MAX_ATTEMPTS:
            self.failed[lease.shard.index] = f"{lease.description}: {reason}"

    def requeue(self, lease: Lease) -> None:
        """Ends a lease without counting a failure. The shard is assigned again unless it is done or failed."""
        del self._leases[lease]
        index = lease.shard.index
        if index not in self._done and index not in self.failed and index not in self._assigned():
            self._requeued.append(lease.shard)

    def _assigned(self) -> set[int]:
        return {lease.shard.index for lease in self._leases}
