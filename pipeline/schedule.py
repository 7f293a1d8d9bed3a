"""Which shard a worker gets next; retry and quarantine accounting. Does not depend on Ray."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from maskmill.pipeline.plan import Plan
from maskmill.pipeline.progress import Attempt, OnCommit, OnProgress, Progress
from maskmill.pipeline.records import Failure, Shard

MAX_ATTEMPTS = 3  # at a shard, of those that failed without an image to blame
# Workers lost in isolated attempts at one image before it is quarantined. The first attempt at a shard processes many
# images at once, so its loss blames none of them.
MAX_DEATHS = 2

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Lease:
    """A shard that is at a worker."""

    shard: Shard
    attempt: Attempt
    begun: Progress | None = None  # the image at work, and the step it is in
    ended: int = 0  # images

    @property
    def has_begun(self) -> bool:
        """Whether its worker has reported progress."""
        return self.begun is not None or self.ended > 0

    @property
    def whereabouts(self) -> str:
        """The shard and, where that is known for sure, the image at work and its step."""
        at = f", step {self.begun.step} of {self.begun.image_id}" if self.begun and self.attempt.isolated else ""
        return f"shard {self.shard.name}{at}"


@dataclass(eq=False)
class _History:
    """The failed attempts at one shard."""

    losses: int = 0
    unexplained: int = 0  # of the losses
    deaths: Counter[str] = field(default_factory=Counter[str])  # image -> losses it is blamed for
    quarantined: dict[str, Failure] = field(default_factory=dict[str, Failure])


class Schedule:
    """The state of a run: what is where, what is done, what has failed how often.

    Shards are handed out in order, then those that lost their worker, then second copies of the slowest. What lost its
    worker has to be alone at the next one: others there would make it uncertain who is to blame. `on_progress` is told
    once of each image that ended, `on_commit` once of each shard.
    """

    def __init__(self, shards: Plan | list[Shard], on_progress: OnProgress, on_commit: OnCommit) -> None:
        self._n_shards = len(shards)
        self._fresh = iter(shards)
        self._on_progress = on_progress
        self._on_commit = on_commit
        self._again: list[Shard] = []
        self._leases: list[Lease] = []
        self._done: set[int] = set()
        self._committed: set[int] = set()  # found so by a copy, while the worker that did it has more to tell
        self._histories: defaultdict[int, _History] = defaultdict(_History)
        self._reported_images: defaultdict[int, set[str]] = defaultdict(set)  # shard -> images passed to on_progress
        self.failed: dict[int, str] = {}  # shard -> why, after the last attempt

    @property
    def unfinished(self) -> int:
        """How many shards are neither done nor given up."""
        return self._n_shards - len(self._done) - len(self.failed)

    def take(self, idle: bool) -> Lease | None:
        """What a worker shall do next; None if nothing.

        Only an `idle` worker gets what has to be alone (and nothing beside it), or a copy of what another one has.
        """
        shard = next(self._fresh, None) or self._next_again(idle) or (self._slowest() if idle else None)
        if shard is None:
            return None
        history = self._histories.get(shard.index, _History())
        lease = Lease(shard, Attempt(history.losses + 1, dict(history.quarantined)))
        self._leases.append(lease)
        return lease

    def _next_again(self, idle: bool) -> Shard | None:
        shard = next((shard for shard in self._again if idle or shard.index not in self._histories), None)
        if shard:
            self._again.remove(shard)
        return shard

    def _slowest(self) -> Shard | None:
        """The shard that is furthest from done and at one worker only: whoever is faster commits it.

        None that has lost a worker before, as it may take the next one with it.
        """
        copies = Counter(lease.shard.index for lease in self._leases)
        candidates = [
            lease
            for lease in self._leases
            if copies[lease.shard.index] == 1
            and lease.shard.index not in self._done | self._committed
            and lease.shard.index not in self._histories
        ]
        return min(candidates, key=lambda lease: lease.ended).shard if candidates else None

    def record_progress(self, lease: Lease, progress: Progress) -> None:
        """Records progress that a worker reported. Each image that ended is passed to `on_progress` once."""
        if progress.status is None:
            lease.begun = progress
            return
        lease.begun = None
        lease.ended += 1
        # A second copy or attempt reports the same images again.
        reported = self._reported_images[progress.shard]
        if progress.shard not in self._done and progress.image_id not in reported:
            reported.add(progress.image_id)
            self._on_progress(progress)

    def finish(self, lease: Lease) -> None:
        """A worker has seen a shard committed, by itself or by another."""
        self._leases.remove(lease)
        index = lease.shard.index
        if lease.ended == 0 and index in self._at_workers():
            self._committed.add(index)  # by a worker that knows of its images, and is heard a moment later
            return
        if index not in self._done:
            self._done.add(index)
            self._reported_images.pop(index, None)
            self._on_commit(lease.shard)

    def record_failure(self, lease: Lease, reason: str) -> None:
        """A worker died, hung or raised. Blames the image in progress after an isolated attempt, else the shard."""
        if lease.shard.index not in self._done:
            self._blame(lease, reason)
        self.requeue(lease)

    def _blame(self, lease: Lease, reason: str) -> None:
        history = self._histories[lease.shard.index]
        history.losses += 1
        logger.warning("%s: attempt %d failed: %s", lease.whereabouts, history.losses, reason)
        if lease.begun and lease.attempt.isolated:
            image_id = lease.begun.image_id
            history.deaths[image_id] += 1
            if history.deaths[image_id] == MAX_DEATHS:
                failure = Failure(lease.begun.step, f"took {MAX_DEATHS} workers with it: {reason}")
                history.quarantined[image_id] = failure
                logger.warning("shard %s: %s is quarantined", lease.shard.name, image_id)
            return
        history.unexplained += 1
        if history.unexplained == MAX_ATTEMPTS:
            self.failed[lease.shard.index] = f"{lease.whereabouts}: {reason}"

    def requeue(self, lease: Lease) -> None:
        """Ends a lease that failed through no fault of the shard. Unless the shard is done, it is tried again."""
        self._leases.remove(lease)
        index = lease.shard.index
        if index not in self._done | self.failed.keys() | self._at_workers():
            self._again.append(lease.shard)

    def _at_workers(self) -> set[int]:
        return {lease.shard.index for lease in self._leases}
