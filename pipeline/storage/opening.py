"""From an address to a store, and the proof that it is fit for results."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from maskmill.pipeline.errors import StorageError
from maskmill.pipeline.storage.interface import PROBE_PREFIX, Storage, unsafe
from maskmill.pipeline.storage.local import LocalStorage


def open_storage(uri: str, make: bool = False) -> Storage:
    """The store at `uri`: a path, or s3://bucket/prefix. `make` creates the folder where it does not exist, as a run
    does for its output; a bucket must exist.

    Raises StorageError where the folder cannot be made, and for an address of another kind.
    """
    if uri.startswith("s3:"):
        try:
            from maskmill.pipeline.storage.s3 import (
                open_s3,  # boto3 takes a while, and machines without it can use their disks
            )
        except ModuleNotFoundError as error:
            raise StorageError(f"an s3:// address needs boto3 ({error}): pip install boto3") from error
        return open_s3(uri)
    if "://" in uri:
        scheme = uri.partition("://")[0]
        raise StorageError(f"{scheme}:// is no store that maskmill knows: give a path or s3://bucket/prefix")
    path = os.fsdecode(uri.encode("utf-8", "surrogateescape"))  # the same but where the system's encoding is not UTF-8
    storage = LocalStorage(Path(path).absolute())
    if make:
        storage.make()
    return storage


def prove_create_if_absent(storage: Storage) -> None:
    """Shows with throw-away objects that the store honours create-if-absent. StorageError where it does not."""
    for store in storage.commit_paths():
        key = PROBE_PREFIX + uuid.uuid4().hex
        created = store.create(key, b"first")
        created_again = store.create(key, b"second")
        kept = store.read(key)
        store.delete(key)
        if not created or created_again or kept != b"first":
            raise StorageError(unsafe(storage.uri))
