"""A seekable stream over an object that is fetched by ranges and goes on where a connection broke."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Protocol, TypeVar

from maskmill.pipeline.errors import ObjectError, StorageError

CHUNK = 1 << 20  # bytes asked of a connection at once: what is fetched again when it breaks
SKIP = 4 << 20  # bytes; a shorter way forward is read over, which is faster than another request

T = TypeVar("T")


class Body(Protocol):
    """What comes over one connection."""

    def read(self, amount: int) -> bytes: ...

    def close(self) -> None: ...


class Guard(Protocol):
    """Runs a step, and again where that makes sense; turns what cannot be helped into StorageError."""

    def __call__(self, step: Callable[[], T]) -> T: ...


class BrokenStreamError(Exception):
    """A connection that ended before its time."""


# From which byte on, and of which version, None for whatever there is -> the rest, its length in bytes, its version.
Fetch = Callable[[int, str | None], tuple[Body, int, str]]


class RangeStream(io.RawIOBase):
    """The bytes of one version of the object `name`; sequential reading is one request for as long as it holds.

    `fetch` asks the store; each step goes through `guard`, and one that failed has dropped its connection. Raises what
    `guard` does, ObjectError where the object was replaced, StorageError where the store does not keep to ranges.
    """

    def __init__(self, name: str, fetch: Fetch, guard: Guard):
        self._body: Body | None = None  # first: close() may come after a failed __init__
        self._name, self._fetch, self._guard = name, fetch, guard
        self._position = self._fetched = 0  # where the reader is, and where the connection is
        self._body, self._size, self._version = guard(lambda: fetch(0, None))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError(f"position {start + offset} lies before the object's first byte")
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
            raise BrokenStreamError(f"the store ended its answer at byte {self._fetched} of {self._size}")
        self._fetched += len(chunk)
        return chunk

    def _reopen(self) -> None:
        self._drop()
        self._body, rest, version = self._fetch(self._position, self._version)
        self._fetched = self._position
        if version != self._version:
            raise ObjectError(f"{self._name}: was replaced while it was read")
        if rest != self._size - self._position:
            raise StorageError(f"{self._name}: the store answers a request for a range with something else")

    def _drop(self) -> None:
        if self._body is not None:
            self._body.close()
            self._body = None
