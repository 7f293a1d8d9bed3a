"""Messages between the driver and a worker about one shard: the attempt, and the progress of its images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from maskmill.filters.agreement import Agreement
from maskmill.pipeline.records import Failure, Shard, Status


@dataclass(frozen=True)
class Attempt:
    """The number of an attempt at a shard, and the images that it must skip."""

    number: int = 1  # starts at 1; attempts that a lost machine ended are not counted
    quarantined: Mapping[str, Failure] = field(default_factory=dict[str, Failure])  # image_id -> why it is skipped

    @property
    def isolated(self) -> bool:
        """Whether images are processed one at a time, and each step is reported before it starts.

        If the worker dies again, the last report identifies the image and the step.
        """
        return self.number > 1


@dataclass(frozen=True)
class Progress:
    """An image of a shard has started a step (`status` is None) or has finished with a status."""

    shard: int
    image_id: str
    step: str = ""  # one of STEPS: decode or encode at the start of a step, the last step of a finished image
    status: Status | None = None
    n_masks: int = 0
    milliseconds: float = 0.0  # sum over all steps
    audit: Agreement | Failure | None = None  # of a finished image that was audited


@dataclass(frozen=True)
class Overtaken:
    """The last record of a shard if another worker, of this driver or another one, committed it first."""

    shard: int


OnProgress = Callable[[Progress], None]
OnCommit = Callable[[Shard], None]
