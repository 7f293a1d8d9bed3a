"""A pool of threads for the generator and the encoders. torch uses one core per thread."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


class SingleCoreThreads:
    """A pool of `count` threads. torch uses one core in each of them; with `count` 1, the calling thread does the work.

    On a CPU the data of a batch of prompts then stays in the caches of one core, without synchronisation between
    threads.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool = _start(count) if count > 1 else None

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """The results of `function`, in the order of the items."""
        return self._pool.map(function, items) if self._pool else map(function, items)


def all_cores() -> SingleCoreThreads:
    """As many threads as torch uses in the calling thread. All callers in this process share them."""
    return _shared(torch.get_num_threads(), os.getpid())


@cache
def _shared(count: int, process: int) -> SingleCoreThreads:
    # A fork has no threads, so the process is part of the key.
    return SingleCoreThreads(count)


def _start(count: int) -> ThreadPoolExecutor:
    pool = ThreadPoolExecutor(count, "maskmill", _use_one_core)
    all_started = threading.Barrier(count)
    list(pool.map(lambda _: all_started.wait(), range(count)))
    torch.set_num_threads(count)  # the pool threads changed the default for threads that start later; restore it
    return pool


def _use_one_core() -> None:
    # The first operation of a thread that depends on the number of threads sets it to the default of the process. The
    # default is restored in `_start`, so without this call the thread would lose its own setting.
    torch.get_num_threads()
    torch.set_num_threads(1)
