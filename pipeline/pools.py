"""Thread pools inside generators."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


@contextmanager
def generator_threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """A pool for a generator, which may be abandoned before its end.

    The garbage collector then ends the generator, in any thread and at any moment, also while `threading` holds its
    locks. So the end waits for no thread: calls that have not begun are cancelled, and the threads end by themselves.
    """
    threads = ThreadPoolExecutor(count)
    try:
        yield threads
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
