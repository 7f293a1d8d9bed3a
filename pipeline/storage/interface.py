"""The Storage interface, and what all who implement it agree on."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Protocol

PROBE_PREFIX = "_probe-"  # a process killed while proving its store may leave one of these behind
LEFTOVER_AGE_S = 24 * 3600  # seconds after which what a writer began is taken to be abandoned
LEFTOVER = re.compile(r"\.[0-9a-f]{32}\.tmp|" + PROBE_PREFIX + "[0-9a-f]{32}")


# Asked by a listing for each name: whether to leave it out. The key of a folder ends with a slash.
Skip = Callable[[str], bool]


@dataclass(frozen=True)
class StoredObject:
    """What a listing says of one object."""

    key: str
    size: int  # bytes


class Storage(Protocol):
    """Objects by key below one address. Implementations are picklable: they travel to the actors.

    A key is a relative POSIX path in UTF-8, none of whose parts is empty or starts with a dot. Every method raises
    StorageError where the store cannot be reached or refuses (after trying again for as long as that makes sense),
    and where the key is no such path. `read` and `open` raise ObjectError, a StorageError, where it is this one
    object that is missing or may not be read.
    """

    @property
    def uri(self) -> str:
        """The address of the store; an object's is `<uri>/<key>`."""
        ...

    def list(self, prefix: str = "", skip: Skip = lambda key: False) -> Iterator[StoredObject]:
        """The objects whose keys start with `prefix`, sorted by key, without those that are still being written.

        `skip` is called once for each name, in order, and leaves out an object or a whole folder. It is also called for
        hidden names, which are no objects whatever it answers. A store without folders calls it for objects only.
        """
        ...

    def read(self, key: str) -> bytes:
        """The object's bytes. ObjectError where there is none."""
        ...

    def open(self, key: str) -> BinaryIO:
        """A seekable, buffered stream over the object, to be closed. ObjectError where there is none.

        Its methods raise OSError for what a local disk cannot read, StorageError for trouble with any other store,
        ObjectError where the object was replaced or deleted since: a stream is of one version of its object.
        """
        ...

    def exists(self, key: str) -> bool:
        """Whether the object is there."""
        ...

    def create(self, key: str, data: bytes) -> bool:
        """Creates the object in one step if it is not there: what a commit stands on.

        False where it was there already; nothing is written then. Of several concurrent callers exactly one gets
        True, readers see all of the object or none of it, and it survives a crash of the machine.
        """
        ...

    def put(self, key: str, data: bytes) -> None:
        """Creates or replaces the object in one step. Only for what can be derived again."""
        ...

    def delete(self, key: str) -> None:
        """Deletes the object; no error where there is none."""
        ...

    def sweep(self) -> None:
        """Removes, as far as the store lets it, what writers that died left behind more than a day ago: half-written
        objects, which no listing shows, and those of `prove_create_if_absent`."""
        ...

    def commit_paths(self) -> Sequence[Storage]:
        """This store, configured once for each code path that creates an object (S3: by size); the proof covers all."""
        ...


def unsafe(uri: str) -> str:
    """The message of a StorageError where the store at `uri` is no place for results."""
    return (
        f"{uri}: this store does not honour create-if-absent, so no result in it would be safe: "
        "choose another place for the output"
    )
