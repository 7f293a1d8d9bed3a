"""The messages between a driver and its workers about one shard: the attempt, and the progress of its images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from maskmill.pipeline.records import Failure, Shard, Status


@dataclass(frozen=True)
class Attempt:
    """Which attempt at a shard this is, and which of its images not to touch."""

    number: int = 1  # from 1; attempts that ended with a lost machine are not counted
    quarantined: Mapping[str, Failure] = field(default_factory=dict[str, Failure])  # image_id -> why it is skipped

    @property
    def isolated(self) -> bool:
        """Whether images are processed one at a time, each step reported before it starts.

        After a lost worker this shows which image and step the next worker is lost at.
        """
        return self.number > 1


@dataclass(frozen=True)
class Progress:
    """An image of a shard starts a step (`status` None), or has ended with a status."""

    shard: int
    image_id: str
    step: str = ""  # one of STEPS; decode or encode where an image begins, the last one where it ended
    status: Status | None = None
    n_masks: int = 0
    milliseconds: float = 0.0  # of all steps


OnProgress = Callable[[Progress], None]
OnCommit = Callable[[Shard], None]
