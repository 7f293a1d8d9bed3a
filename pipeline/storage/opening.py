"""Opens stores by address, from one table of schemes, and proves that a store can hold an output."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from maskmill.pipeline.errors import StorageError
from maskmill.pipeline.storage.interface import PROBE_PREFIX, ReadableStorage, Storage, unsafe
from maskmill.pipeline.storage.local import LocalStorage


@dataclass(frozen=True)
class Scheme:
    """How the addresses of one scheme are opened. Both functions raise StorageError if the address is invalid."""

    example: str  # for error messages
    open_readable: Callable[[str], ReadableStorage]
    open_storage: Callable[[str, bool], Storage] | None = None  # the bool is `make`; None: the scheme is read-only


def open_readable(uri: str) -> ReadableStorage:
    """Opens the store at `uri` for reading. Raises StorageError if its scheme is not in SCHEMES."""
    return _find(uri).open_readable(uri)


def open_storage(uri: str, make: bool = False) -> Storage:
    """Opens the store at `uri` for reading and writing.

    `make` creates a local folder that does not exist; a bucket must exist. Raises StorageError if the folder cannot be
    created, or if the scheme is unknown or read-only.
    """
    scheme = _find(uri)
    if scheme.open_storage is None:
        raise _unsupported(uri, "can only be read", [scheme for scheme in SCHEMES.values() if scheme.open_storage])
    return scheme.open_storage(uri, make)


def _find(uri: str) -> Scheme:
    for name, scheme in SCHEMES.items():
        if name and uri.startswith(f"{name}:"):  # also s3:bucket: the opener says what is missing
            return scheme
    if "://" in uri:
        raise _unsupported(uri, "is not supported", list(SCHEMES.values()))
    return SCHEMES[""]


def _unsupported(uri: str, problem: str, possible: list[Scheme]) -> StorageError:
    *others, last = (scheme.example for scheme in possible)
    # Only the scheme of the address: the rest can hold a password.
    return StorageError(f"{uri.partition('://')[0]}:// {problem}; give {', '.join(others)} or {last}")


def _open_folder(uri: str, make: bool = False) -> Storage:
    path = os.fsdecode(uri.encode("utf-8", "surrogateescape"))  # differs if the system's encoding is not UTF-8
    storage = LocalStorage(Path(path).absolute())
    if make:
        storage.make()
    return storage


def _open_s3(uri: str, make: bool = False) -> Storage:
    try:
        # Imported here because boto3 takes long to import and runs on local disks do not need it.
        from maskmill.pipeline.storage.s3 import open_s3
    except ModuleNotFoundError as error:
        raise StorageError(f"an s3:// address needs boto3 ({error}): pip install boto3") from error
    return open_s3(uri)


# By scheme; "" is an address without one.
SCHEMES = {
    "": Scheme("a path", _open_folder, _open_folder),
    "s3": Scheme("s3://bucket/prefix", _open_s3, _open_s3),
}


def prove_create_if_absent(storage: Storage) -> None:
    """Creates temporary objects to prove that the store honours create-if-absent. Raises StorageError if not."""
    for store in storage.commit_paths():
        key = PROBE_PREFIX + uuid.uuid4().hex
        created = store.create(key, b"first")
        created_again = store.create(key, b"second")
        kept = store.read(key)
        store.delete(key)
        if not created or created_again or kept != b"first":
            raise StorageError(unsafe(storage.uri))
