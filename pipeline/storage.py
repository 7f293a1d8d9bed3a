"""Where objects are kept: the Storage interface, and the local disk behind it. S3 is in pipeline/s3.py."""

from __future__ import annotations

import errno
import os
import re
import stat
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from pipeline.errors import ObjectError, StorageError
from pipeline.keys import is_key, one_line, utf8_text

PROBE_PREFIX = "_probe-"  # a process killed while proving its store may leave one of these behind
LEFTOVER_AGE_S = 24 * 3600  # seconds after which what a writer began is taken to be abandoned
LEFTOVER = re.compile(r"\.[0-9a-f]{32}\.tmp|" + PROBE_PREFIX + "[0-9a-f]{32}")

# What the system says of one file in a folder that works. All else (no space, stale handle, timeout) is the store's.
_ONE_FILE = {
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR),
    *(errno.ELOOP, errno.ENAMETOOLONG, errno.EIO),
}


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

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        """The objects whose keys start with `prefix`, sorted by key, without those that are still being written."""
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

    def ways(self) -> Sequence[Storage]:
        """This store once for each way in which it creates an object (by size, say): what a proof has to cover."""
        ...


def open_storage(uri: str, make: bool = False) -> Storage:
    """The store at `uri`: a path, or s3://bucket/prefix. `make` creates the folder where it does not exist, as a run
    does for its output; a bucket must exist.

    Raises StorageError where the folder cannot be made, and for an address of another kind.
    """
    if uri.startswith("s3:"):
        try:
            from pipeline.s3 import open_s3  # boto3 takes a while, and machines without it can use their disks
        except ModuleNotFoundError as error:
            raise StorageError(f"an s3:// address needs boto3 ({error}): pip install boto3") from error
        return open_s3(uri)
    if "://" in uri:
        scheme = uri.partition("://")[0]
        raise StorageError(f"{scheme}:// is no store that maskmill knows: give a path or s3://bucket/prefix")
    storage = LocalStorage(Path(uri).absolute())
    if make:
        storage.make()
    return storage


def prove_create_if_absent(storage: Storage) -> None:
    """Shows with throw-away objects that the store honours create-if-absent. StorageError where it does not."""
    for way in storage.ways():
        key = PROBE_PREFIX + uuid.uuid4().hex
        created = way.create(key, b"first")
        created_again = way.create(key, b"second")
        kept = way.read(key)
        way.delete(key)
        if not created or created_again or kept != b"first":
            raise StorageError(unsafe(storage.uri))


def unsafe(uri: str) -> str:
    """The message of a StorageError where the store at `uri` is no place for results."""
    return (
        f"{uri}: this store does not honour create-if-absent, so no result in it would be safe: "
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
        with self._explained(self.root):
            os.stat(self.root)
        for item in self._walk(folder):
            if item.key.startswith(prefix):
                yield item

    def _walk(self, folder: str) -> Iterator[StoredObject]:
        path = self._path(folder) if folder else self.root
        with self._explained(path):
            try:
                with os.scandir(path) as entries:
                    # Names only: there may be millions, and an entry takes a kilobyte.
                    names = [
                        entry.name + "/" * entry.is_dir(follow_symlinks=False)
                        for entry in entries
                        if not entry.name.startswith(".")
                    ]
            except (FileNotFoundError, NotADirectoryError):
                return
        # A folder sorts with its slash, so that keys come in order: `a.jpg` before `a/b.jpg` before `a0.jpg`.
        names.sort(key=utf8_text)
        for name in names:
            key = utf8_text(f"{folder}/{name}" if folder else name)
            if name.endswith("/"):
                yield from self._walk(key[:-1])
                continue
            with self._explained(path):
                size = _size(f"{path}/{name}")
            if size is not None:
                yield StoredObject(key, size)

    def read(self, key: str) -> bytes:
        with self.open(key) as stream, self._explained(self._path(key), ObjectError):
            return stream.read()

    def open(self, key: str) -> BinaryIO:
        path = self._path(key)
        with self._explained(path, ObjectError):
            return open(path, "rb")

    def exists(self, key: str) -> bool:
        path = self._path(key)
        with self._explained(path):
            try:
                return stat.S_ISREG(os.stat(path).st_mode)
            except (FileNotFoundError, NotADirectoryError):
                return False

    def create(self, key: str, data: bytes) -> bool:
        path = self._path(key)
        with self._explained(path):
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
        with self._explained(path), self._temporary(path, data) as temporary:
            os.replace(temporary, path)
            _sync_folder(path.parent)

    def delete(self, key: str) -> None:
        path = self._path(key)
        with self._explained(path):
            path.unlink(missing_ok=True)

    def sweep(self) -> None:
        oldest = time.time() - LEFTOVER_AGE_S
        with self._explained(self.root):
            for folder, _, names in os.walk(self.root):
                for path in (Path(folder, name) for name in names if LEFTOVER.fullmatch(name)):
                    with suppress(FileNotFoundError):  # another run sweeps too
                        if path.lstat().st_mtime < oldest:
                            path.unlink()

    def ways(self) -> Sequence[Storage]:
        return [self]

    def make(self) -> None:
        """Creates the folder where it does not exist."""
        with self._explained(self.root):
            self.root.mkdir(parents=True, exist_ok=True)

    def _path(self, key: str) -> Path:
        if not is_key(key):
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

    @contextmanager
    def _explained(self, path: Path, one_file: type[StorageError] = StorageError) -> Iterator[None]:
        """Turns OSError into StorageError; into `one_file` where only the file at `path` is at fault."""
        try:
            yield
        except OSError as error:
            # A folder that was deleted or unmounted is no fault of the files that were in it.
            lost = error.errno == errno.ENOENT and not os.path.isdir(self.root)
            kind = one_file if error.errno in _ONE_FILE and not lost else StorageError
            where = self.root if lost else path
            raise kind(f"{one_line(utf8_text(str(where)))}: {error.strerror or error}") from error

    def _make_folders(self, folder: Path) -> None:
        if folder == self.root or folder.is_dir():
            return
        self._make_folders(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)


def _size(path: str) -> int | None:
    """Bytes of a file; 0 for a link to nowhere, which fails when it is read; None for what is no object."""
    try:
        status = os.stat(path)
    except FileNotFoundError:  # or deleted since it was listed
        return 0 if os.path.islink(path) else None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _sync_folder(folder: Path) -> None:
    """Makes the names in the folder survive a crash, not only the files' contents."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
