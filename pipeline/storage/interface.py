"""The two interfaces of a store (ReadableStorage and Storage) and the constants that implementations share."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol

PROBE_PREFIX = "_probe-"  # objects of `prove_create_if_absent`; a killed process can leave one behind
LEFTOVER_AGE_S = 24 * 3600  # seconds; an older unfinished write counts as abandoned
LEFTOVER = re.compile(r"\.[0-9a-f]{32}\.tmp|" + PROBE_PREFIX + "[0-9a-f]{32}")


# A listing calls it with each key and omits the keys for which it returns True. The key of a folder ends with a slash.
Skip = Callable[[str], bool]


@dataclass(frozen=True)
class StoredObject:
    """One object in a listing."""

    key: str
    size: int  # bytes
    modified: float = field(compare=False, default=0.0)  # seconds since the epoch: when the object was written


class ReadableStorage(Protocol):
    """Objects under one address that can be listed and read: all that a source of images needs.

    A key is a relative POSIX path in UTF-8. No part of it is empty or starts with a dot. Implementations can be
    pickled, because Ray sends them to the workers.

    Every method raises StorageError if the store cannot be reached or refuses the request (after retries, where a retry
    can help), or if the key is invalid. `read` and `open` raise ObjectError, a subclass, if the store works but this
    object is missing or access to it is denied.
    """

    @property
    def uri(self) -> str:
        """The address of the store. The address of an object is `<uri>/<key>`."""
        ...

    def list(self, prefix: str = "", skip: Skip = lambda key: False) -> Iterator[StoredObject]:
        """Lists the objects with keys that start with `prefix`, sorted by key. Unfinished writes are not listed.

        `skip` is called once per name, in order; True omits the object or the whole folder. It is also called for
        hidden names, which are never listed. A store without folders calls it for objects only.
        """
        ...

    def read(self, key: str) -> bytes:
        """Returns the bytes of the object. Raises ObjectError if it does not exist."""
        ...

    def open(self, key: str) -> BinaryIO:
        """Opens a seekable, buffered stream that the caller closes. Raises ObjectError if the object does not exist.

        A stream reads one version of the object: its methods raise ObjectError if the object was replaced or deleted
        after `open`. For other failures they raise OSError (local disk) or StorageError (other stores).
        """
        ...

    def exists(self, key: str) -> bool:
        """Whether the object exists."""
        ...


class Storage(ReadableStorage, Protocol):
    """A ReadableStorage that can also be written: the output of a run."""

    def create(self, key: str, data: bytes) -> bool:
        """Creates the object atomically if it is absent, and returns whether it did. A commit is one such call.

        Returns False, without writing, if the object exists. Exactly one of several concurrent callers gets True.
        Readers see the complete object or none. After True the object survives a crash of the machine.
        """
        ...

    def put(self, key: str, data: bytes) -> None:
        """Creates or replaces the object atomically. Only for data that can be derived again."""
        ...

    def put_chunks(self, key: str, chunks: Iterable[bytes]) -> None:
        """`put` of data that does not fit into memory: the object is the concatenation of the chunks.

        Readers see the previous object, or none, until the last chunk is written. If `chunks` raises, nothing changes.
        """
        ...

    def delete(self, key: str) -> None:
        """Deletes the object. Does nothing if it does not exist."""
        ...

    def sweep(self) -> None:
        """Removes what killed processes left behind more than LEFTOVER_AGE_S ago, as far as permissions allow:
        unfinished writes and the objects of `prove_create_if_absent`."""
        ...

    def commit_paths(self) -> Sequence[Storage]:
        """This store, configured once for each code path that creates an object (S3: by size); the proof covers all."""
        ...


def unsafe(uri: str) -> str:
    """The message of the StorageError for a store that cannot hold an output."""
    return (
        f"{uri}: this store does not honour create-if-absent, so two processes could overwrite each other's results: "
        "choose another place for the output"
    )
