"""What a worker and its caller tell each other about a shard: the attempt, and the progress of its images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from maskmill.pipeline.records import Failure, Shard, Status


@dataclass(frozen=True)
class Attempt:
    """What is known of a shard when a worker gets it."""

    number: int = 1  # so often the shard has been at a worker, those aside that were taken away
    quarantined: Mapping[str, Failure] = field(default_factory=dict[str, Failure])  # images not to touch again

    @property
    def careful(self) -> bool:
        """Whether images are worked on one by one, each step told of in advance: a worker was lost, the next may be."""
        return self.number > 1


@dataclass(frozen=True)
class Progress:
    """An image of a shard begins a step (`status` None), or ended."""

    shard: int
    image_id: str
    step: str = ""  # one of STEPS; decode or encode where an image begins, the last one where it ended
    status: Status | None = None
    n_masks: int = 0
    milliseconds: float = 0.0  # of all steps


OnProgress = Callable[[Progress], None]
OnCommit = Callable[[Shard], None]
