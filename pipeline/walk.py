"""The order in which a driver takes the shards of a plan, so that several drivers on one output share the work.

The drivers do not talk to each other. They see only which shards are committed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection

import numpy as np

from maskmill.pipeline.plan import Plan
from maskmill.pipeline.records import Shard


class Walk:
    """An iterator over the shards of a plan, each once, without those that other drivers commit meanwhile.

    It takes shards in the order of the plan, up to the end or to a shard of another driver. Then it jumps to a random
    place in the second half of the longest gap, a sequence of shards that are neither committed nor taken. The first
    half is left to other drivers, which walk forward too.

    `jump` must be called when another driver committed a shard that this walk returned: both are at the same place.
    """

    def __init__(
        self, plan: Plan, committed: Callable[[], Collection[str]], from_start: bool, seed: int | None = None
    ) -> None:
        """`committed` returns the names of the committed shards. It is called before each jump, but not at the start.

        `from_start`: begin with the first shard of the plan. Only one of the drivers of a run may do so.
        """
        self._plan, self._committed, self._random = plan, committed, random.Random(seed)
        self._closed = plan.left_out.copy()  # (shards,) committed, taken or not in the plan
        self._others = np.zeros_like(self._closed)  # (shards,) committed by other drivers during this walk
        self._length = len(plan)
        self._must_jump = False
        if from_start or self._closed.all():
            self._go_to(0)
        else:
            self._go_to_longest_gap()

    def __len__(self) -> int:
        """The number of shards at the beginning."""
        return self._length

    @property
    def skipped(self) -> int:
        """The number of shards that other drivers committed before this walk reached them."""
        return int(np.count_nonzero(self._others))

    def __iter__(self) -> Walk:
        return self

    def __next__(self) -> Shard:
        if self._closed.all():
            raise StopIteration
        if self._must_jump or not self._reach_open_shard():
            self._close_committed()
            if self._closed.all():
                raise StopIteration
            self._go_to_longest_gap()
        self._closed[self._position] = True
        self._position += 1
        return next(self._following)

    def jump(self) -> None:
        """Makes the next shard come from another place."""
        self._must_jump = True

    def _reach_open_shard(self) -> bool:
        """Moves forward to an open shard. Returns False if the end or a shard of another driver comes first."""
        while self._position < len(self._closed) and not self._others[self._position]:
            if not self._closed[self._position]:
                return True
            if not self._plan.left_out[self._position]:
                next(self._following)
            self._position += 1
        return False

    def _close_committed(self) -> None:
        for index in map(int, self._committed()):
            if index < len(self._closed) and not self._closed[index]:
                self._closed[index] = self._others[index] = True

    def _go_to_longest_gap(self) -> None:
        edges = np.flatnonzero(np.diff(self._closed, prepend=True, append=True))
        starts, ends = edges[::2], edges[1::2]
        longest = np.argmax(ends - starts)
        start, end = int(starts[longest]), int(ends[longest])
        self._go_to(self._random.randrange((start + end) // 2, end))

    def _go_to(self, position: int) -> None:
        self._position = position
        self._following = self._plan.shards_from(position)
        self._must_jump = False
