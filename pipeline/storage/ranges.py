"""A seekable stream over a remote object: fetches byte ranges and resumes after a lost connection."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Protocol, TypeVar

from maskmill.pipeline.errors import ObjectError, StorageError

CHUNK = 1 << 20  # bytes per read from a connection: the most that is fetched again after a failure
SKIP = 4 << 20  # bytes; a shorter seek forward reads and discards, which is faster than a new request

T = TypeVar("T")


class Body(Protocol):
    """The response body of one connection."""

    def read(self, amount: int) -> bytes: ...

    def close(self) -> None: ...


class Guard(Protocol):
    """Runs a step with retries. Raises StorageError if it still fails."""

    def __call__(self, step: Callable[[], T]) -> T: ...


class BrokenStreamError(Exception):
    """A connection that closed before the end of the response."""


# (first byte, version or None for the current one) -> body from that byte to the end, its length in bytes, its version
Fetch = Callable[[int, str | None], tuple[Body, int, str]]


class RangeStream(io.RawIOBase):
    """The bytes of one version of the object `name`. Sequential reads share one request until the connection breaks.

    `fetch` sends a request. `guard` runs each read; a failed read closes its connection, so a retry sends another.
    Raises what `guard` raises; ObjectError if the object was replaced; StorageError if the store ignores ranges.
    """

    def __init__(self, name: str, fetch: Fetch, guard: Guard):
        self._body: Body | None = None  # set first: Python calls close() after a failed __init__
        self._name, self._fetch, self._guard = name, fetch, guard
        self._position = self._fetched = 0  # byte offsets of the reader and of the connection
        self._body, self._size, self._version = guard(lambda: fetch(0, None))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError(f"position {start + offset} is before the first byte of the object")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        amount = min(len(buffer), CHUNK, self._size - self._position)
        if amount <= 0:
            return 0
        chunk = self._guard(lambda: self._next(amount))
        buffer[: len(chunk)] = chunk
        self._position += len(chunk)
        return len(chunk)

    def readall(self) -> bytes:
        return b"".join(iter(lambda: self.read(CHUNK), b""))

    def close(self) -> None:
        self._drop()
        super().close()

    def _next(self, amount: int) -> bytes:
        try:
            if self._body is None or not 0 <= self._position - self._fetched <= SKIP:
                self._reopen()
            while self._fetched < self._position:
                self._take(min(CHUNK, self._position - self._fetched))
            return self._take(amount)
        except BaseException:
            self._drop()
            raise

    def _take(self, amount: int) -> bytes:
        assert self._body is not None
        chunk = self._body.read(amount)
        if not chunk:
            raise BrokenStreamError(f"the store ended its response at byte {self._fetched} of {self._size}")
        self._fetched += len(chunk)
        return chunk

    def _reopen(self) -> None:
        self._drop()
        self._body, rest, version = self._fetch(self._position, self._version)
        self._fetched = self._position
        if version != self._version:
            raise ObjectError(f"{self._name}: was replaced while it was being read")
        if rest != self._size - self._position:
            raise StorageError(f"{self._name}: the store does not return the requested byte range")

    def _drop(self) -> None:
        if self._body is not None:
            self._body.close()
            self._body = None
