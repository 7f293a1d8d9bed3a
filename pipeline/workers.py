"""The interface between the driver and its workers. `cluster.py` implements it with Ray, a benchmark by simulation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any, Protocol

from maskmill.pipeline.placement import Machine, Placement
from maskmill.pipeline.progress import Attempt, Overtaken, Progress
from maskmill.pipeline.records import Shard

# Ray does not export the types of these to type checkers.
Actor = Any  # a worker process
Reference = Any  # the pending result of a call, or the stream of results of a shard


class Workers(Protocol):
    """Starts and stops workers, and sends calls to them. The calls raise the exceptions of Ray."""

    def now(self) -> float:
        """Seconds on a clock that never goes back."""
        ...

    def machines(self) -> Mapping[str, Machine]:
        """The machines that can have workers, by Ray node id."""
        ...

    def draining(self) -> Set[str]:
        """The Ray node ids of machines that will be removed."""
        ...

    def start(self, placement: Placement) -> tuple[Actor, Reference]:
        """Starts a worker as soon as its resources are free. The result is that of `place`, once it has an engine."""
        ...

    def place(self, actor: Actor) -> Reference:
        """Asks a worker for its machine's Ray node id, and its name in the output."""
        ...

    def process(self, actor: Actor, shard: Shard, attempt: Attempt) -> Reference:
        """Sends a shard to a worker. Returns the stream of its progress."""
        ...

    def wait(self, references: Sequence[Reference], timeout: float, pause: float) -> Sequence[Reference]:
        """Waits up to `timeout` seconds until one has a result, then `pause` seconds for the results of others.

        Returns those that have a result. The pause bounds the number of rounds: the cost of a round grows with the
        number of workers, and so does the number of results per second.
        """
        ...

    def result(self, reference: Reference) -> tuple[str, str]:
        """The result of `start` or `place`, which `wait` has returned. Raises RayError if the call failed."""
        ...

    def next_records(self, stream: Reference) -> list[Progress | Overtaken]:
        """The next records of a stream that `wait` has returned.

        Raises StopIteration if the shard is done, RayError if the worker died or raised.
        """
        ...

    def kill(self, actor: Actor) -> None:
        """Ends a worker and its calls."""
        ...

    def export(self, shards: Mapping[str, int], workers: Mapping[str, int]) -> None:
        """Exports metrics: the number of unfinished shards and of workers, by state."""
        ...
