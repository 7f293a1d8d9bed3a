"""The local disk behind the Storage interface."""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import stat
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from maskmill.pipeline.errors import ObjectError, StorageError
from maskmill.pipeline.storage.interface import LEFTOVER, LEFTOVER_AGE_S, Skip, Storage, StoredObject
from maskmill.pipeline.storage.keys import file_name, is_key, one_line, utf8_text

logger = logging.getLogger(__name__)

# What the system says of one file in a folder that works. All else (no space, stale handle, timeout) is the store's.
_ONE_FILE = {
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR),
    *(errno.ELOOP, errno.ENAMETOOLONG, errno.EIO),
}

# What file systems say to a call that they do not have; EPERM: FAT, exFAT and FUSE to hard links.
_UNSUPPORTED = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}


def rename_noreplace(source: Path, target: Path) -> None:
    """Renames a file in one step, for file systems without hard links. FileExistsError where `target` exists.

    OSError with ENOSYS where the system has no such call, with EINVAL where the file system does not support it.
    """
    # glibc has it since 2.28.
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(target))


_AT_FDCWD, _RENAME_NOREPLACE = -100, 1  # of Linux


@dataclass(frozen=True)
class LocalStorage:
    """A folder. It must exist: one that vanishes under a run is an error, not a new and empty store.

    - Files and folders whose names start with a dot are not objects. That hides the temporary files of writes in
      progress (and those of killed writers) from every listing, and .DS_Store, ._photo.jpg and .git with them.
    - A link to a file is an object, wherever it points: collections of links are common. A link to a folder is
      followed, but no folder is listed twice: one below the root has its own path, another one that of the first link
      to it in the order of keys. A warning counts the others. Devices, pipes and sockets are no objects.
    - In the key of a file whose name is not UTF-8 the bytes that are not are written as \\xhh.
    """

    root: Path
    # How a finished file gets its name; each fails where the name is taken. The first that the file system has is used.
    placing: Sequence[Callable[[Path, Path], None]] = field(
        default=(os.link, rename_noreplace), repr=False, kw_only=True
    )

    @property
    def uri(self) -> str:
        return utf8_text(str(self.root))

    def list(self, prefix: str = "", skip: Skip = lambda key: False) -> Iterator[StoredObject]:
        folder = prefix.rpartition("/")[0]
        with self._explained(self.root):
            linked = _LinkedFolders(os.path.realpath(self.root), {_identity(self.root)})
        for item in self._walk(folder, skip, linked):
            if item.key.startswith(prefix):
                yield item
        if linked.repeated:
            logger.warning(
                "%s: %d linked folders were left out, since they are listed under another name, such as %s",
                *(self.uri, len(linked.repeated), linked.repeated[0]),
            )

    def _walk(
        self, folder: str, skip: Skip, linked: _LinkedFolders, below_link: bool = False
    ) -> Iterator[StoredObject]:
        path = self._path(folder) if folder else self.root
        with self._explained(path):
            try:
                with os.scandir(path) as entries:
                    # Names only: there may be millions, and an entry takes a kilobyte.
                    names = [entry.name + "/" * _is_folder(entry) for entry in entries]
            except (FileNotFoundError, NotADirectoryError):
                return
        # A folder sorts with its slash, so that keys come in order: `a.jpg` before `a/b.jpg` before `a0.jpg`.
        names.sort(key=utf8_text)
        for name in names:
            key = f"{folder}/{utf8_text(name)}" if folder else utf8_text(name)
            if skip(key) or name.startswith("."):
                continue
            if not name.endswith("/"):
                with self._explained(path):
                    size = _size(f"{path}/{name}")
                if size is not None:
                    yield StoredObject(key, size)
                continue
            is_link = os.path.islink(f"{path}/{name[:-1]}")
            with self._explained(path):
                repeated = (is_link or below_link) and linked.is_repeated(f"{path}/{name[:-1]}", key[:-1], is_link)
            if not repeated:
                yield from self._walk(key[:-1], skip, linked, below_link or is_link)

    def read(self, key: str) -> bytes:
        with self.open(key) as stream, self._explained(self._path(key), ObjectError):
            return stream.read()

    def open(self, key: str) -> BinaryIO:
        path = self._path(key)
        with self._explained(path, ObjectError):
            stream = open(path, "rb", opener=_without_waiting)  # noqa: SIM115 - the caller closes it
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                stream.close()
                raise ObjectError(f"{one_line(utf8_text(str(path)))}: not a file")
            return stream

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
                return self._place(temporary, path)

    def _place(self, temporary: Path, path: Path) -> bool:
        """Gives the file the name `path`. False where that is taken."""
        for place in self.placing:
            try:
                place(temporary, path)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
            else:
                sync_folder(path.parent)
                return True
        raise StorageError(
            f"{one_line(self.uri)}: this file system has neither hard links nor a rename that fails if the name exists "
            "(RENAME_NOREPLACE), so two processes could overwrite each other's results: choose another place for the "
            "output"
        )

    def put(self, key: str, data: bytes) -> None:
        path = self._path(key)
        with self._explained(path), self._temporary(path, data) as temporary:
            os.replace(temporary, path)
            sync_folder(path.parent)

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

    def commit_paths(self) -> Sequence[Storage]:
        return [self]

    def make(self) -> None:
        """Creates the folder where it does not exist."""
        with self._explained(self.root):
            self.root.mkdir(parents=True, exist_ok=True)

    def _path(self, key: str) -> Path:
        if not is_key(key):
            raise StorageError(f"{self.uri}: not a key of an object: {key!r}")
        return self.root / file_name(key)

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
        sync_folder(folder.parent)


@dataclass
class _LinkedFolders:
    """The folders that one listing has reached through links."""

    root: str  # real path of the folder that is listed
    listed: set[tuple[int, int]]  # identities of the root and of the folders so far
    repeated: list[str] = field(default_factory=list[str])  # keys of those that were reached again

    def is_repeated(self, path: str, key: str, is_link: bool) -> bool:
        """Whether the folder at `path`, a link or below one, has another key."""
        identity = _identity(path)
        if identity in self.listed or (is_link and self._is_below_root(os.path.realpath(path))):
            self.repeated.append(key)
            return True
        self.listed.add(identity)
        return False

    def _is_below_root(self, path: str) -> bool:
        """Not hidden, so that it is listed there."""
        root = os.path.join(self.root, "")
        return path.startswith(root) and not any(part.startswith(".") for part in path.removeprefix(root).split("/"))


def _identity(path: str | Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # of what a link points to: reading it will tell
        return False


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # for a writer, where the path is a pipe


def _size(path: str) -> int | None:
    """Bytes of a file; 0 for a link to nowhere, which fails when it is read; None for what is no object."""
    try:
        status = os.stat(path)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
        return 0 if os.path.islink(path) else None  # None: deleted since it was listed
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def sync_folder(folder: Path) -> None:
    """Makes the names in the folder survive a crash, not only the files' contents, as far as the file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    finally:
        os.close(descriptor)
