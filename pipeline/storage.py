"""Where objects are kept: the Storage interface, and the local disk behind it."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from pipeline.errors import StorageError

PROBE_PREFIX = "_probe-"  # a process killed while proving its store may leave one of these behind


@dataclass(frozen=True)
class StoredObject:
    """What a listing says of one object."""

    key: str
    size: int  # bytes


class Storage(Protocol):
    """Objects by key below one address. Implementations are picklable: they travel to the actors.

    A key is a relative POSIX path in UTF-8, none of whose parts is empty or starts with a dot. Every method raises
    StorageError where the store cannot be reached or refuses, and where the key is no such path.
    """

    @property
    def uri(self) -> str:
        """The address of the store; an object's is `<uri>/<key>`."""
        ...

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        """The objects whose keys start with `prefix`, sorted by key, without those that are still being written."""
        ...

    def read(self, key: str) -> bytes:
        """The object's bytes. StorageError where there is none."""
        ...

    def open(self, key: str) -> BinaryIO:
        """A seekable stream over the object, whose own methods raise OSError. StorageError where there is none."""
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


def open_storage(uri: str, make: bool = False) -> Storage:
    """The store at `uri`; `make` creates the folder where it does not exist, as a run does for its output.

    Raises StorageError where the folder cannot be made, and for anything but a local path.
    """
    if "://" in uri:
        raise StorageError(f"{uri}: this version reads and writes local disk only: give a path")
    root = Path(uri).absolute()
    if make:
        with _as_storage_error(root):
            root.mkdir(parents=True, exist_ok=True)
    return LocalStorage(root)


def prove_create_if_absent(storage: Storage) -> None:
    """Shows with a throw-away object that the store honours create-if-absent. StorageError where it does not."""
    key = PROBE_PREFIX + uuid.uuid4().hex
    try:
        created = storage.create(key, b"first")
        created_again = storage.create(key, b"second")
        kept = storage.read(key)
    finally:
        storage.delete(key)
    if not created or created_again or kept != b"first":
        raise StorageError(
            f"{storage.uri}: this store does not honour create-if-absent, so no result in it would be safe: "
            "choose another place for the output"
        )


@dataclass(frozen=True)
class LocalStorage:
    """A folder. It must exist: one that vanishes under a run is an error, not a new and empty store.

    - Files and folders whose names start with a dot are not objects. That hides the temporary files of writes in
      progress (and those of killed writers) from every listing, and .DS_Store, ._photo.jpg and .git with them.
    - A link to a file is an object, wherever it points: collections of links are common. A link to a folder is not
      followed, since it may lead back. Devices, pipes and sockets are no objects.
    - In the key of a file whose name is not UTF-8 the bytes that are not are written as \\xhh.
    """

    root: Path

    @property
    def uri(self) -> str:
        return utf8_text(str(self.root))

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        folder = prefix.rpartition("/")[0]
        with _as_storage_error(self.root):
            os.stat(self.root)
        for item in self._walk(folder):
            if item.key.startswith(prefix):
                yield item

    def _walk(self, folder: str) -> Iterator[StoredObject]:
        path = self._path(folder) if folder else self.root
        with _as_storage_error(path):
            try:
                visible = [entry for entry in os.scandir(path) if not entry.name.startswith(".")]
            except (FileNotFoundError, NotADirectoryError):
                return
            # A folder sorts with its slash, so that keys come in order: `a.jpg` before `a/b.jpg` before `a0.jpg`.
            named = [(utf8_text(entry.name) + "/" * entry.is_dir(follow_symlinks=False), entry) for entry in visible]
        for name, entry in sorted(named, key=lambda pair: pair[0]):
            key = f"{folder}/{name}" if folder else name
            if name.endswith("/"):
                yield from self._walk(key[:-1])
                continue
            with _as_storage_error(path):
                size = _size(entry)
            if size is not None:
                yield StoredObject(key, size)

    def read(self, key: str) -> bytes:
        with self.open(key) as stream, _as_storage_error(self._path(key)):
            return stream.read()

    def open(self, key: str) -> BinaryIO:
        path = self._path(key)
        with _as_storage_error(path):
            return open(path, "rb")

    def exists(self, key: str) -> bool:
        path = self._path(key)
        with _as_storage_error(path):
            return path.is_file()

    def create(self, key: str, data: bytes) -> bool:
        path = self._path(key)
        with _as_storage_error(path):
            if path.exists():
                return False  # spares a late copy of a shard the writing
            with self._temporary(path, data) as temporary:
                try:
                    os.link(temporary, path)  # unlike a rename, fails where the name is taken
                except FileExistsError:
                    return False
                _sync_folder(path.parent)
                return True

    def put(self, key: str, data: bytes) -> None:
        path = self._path(key)
        with _as_storage_error(path), self._temporary(path, data) as temporary:
            os.replace(temporary, path)
            _sync_folder(path.parent)

    def delete(self, key: str) -> None:
        path = self._path(key)
        with _as_storage_error(path):
            path.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        if any(part == "" or part.startswith(".") for part in key.split("/")) or "\0" in key:
            raise StorageError(f"{self.uri}: not a key of an object: {key!r}")
        name = re.sub(rb"\\x([89a-f][0-9a-f])", lambda byte: bytes.fromhex(byte[1].decode()), key.encode())
        return self.root / os.fsdecode(name)

    @contextmanager
    def _temporary(self, path: Path, data: bytes) -> Iterator[Path]:
        """A file beside `path`, so on the same file system, that holds `data` safely on disk; gone afterwards."""
        self._make_folders(path.parent)
        temporary = path.parent / f".{uuid.uuid4().hex}.tmp"
        try:
            with open(temporary, "xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    def _make_folders(self, folder: Path) -> None:
        if folder == self.root or folder.is_dir():
            return
        self._make_folders(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)


def utf8_text(name: str) -> str:
    """A file name as text that can be encoded: bytes that are not UTF-8 become \\xhh."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _size(entry: os.DirEntry[str]) -> int | None:
    """Bytes of a file; 0 for a link to nowhere, which fails when it is read; None for what is no object."""
    try:
        if not entry.is_file():
            return 0 if entry.is_symlink() and not os.path.exists(entry.path) else None
        return entry.stat().st_size
    except FileNotFoundError:  # deleted since it was listed
        return None


def _sync_folder(folder: Path) -> None:
    """Makes the names in the folder survive a crash, not only the files' contents."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _as_storage_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{utf8_text(str(path))}: {error.strerror or error}") from error
