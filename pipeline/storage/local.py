"""The Storage interface on a local folder."""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import stat
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from maskmill.pipeline.errors import ObjectError, StorageError
from maskmill.pipeline.storage.interface import LEFTOVER, LEFTOVER_AGE_S, Skip, Storage, StoredObject
from maskmill.pipeline.storage.keys import file_name, is_key, one_line, utf8_text

logger = logging.getLogger(__name__)

# Errors that concern one file. Others (no space, stale handle, timeout) concern the whole store.
_ONE_FILE = {
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR),
    *(errno.ELOOP, errno.ENAMETOOLONG, errno.EIO),
}

# Errors of file systems that lack a call; EPERM is what FAT, exFAT and FUSE return for hard links.
_UNSUPPORTED = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}


def rename_noreplace(source: Path, target: Path) -> None:
    """Renames a file atomically, for file systems without hard links. Raises FileExistsError if `target` exists.

    Raises OSError with ENOSYS if the system lacks renameat2, with EINVAL if the file system does not support the flag.
    """
    # In glibc since 2.28.
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(target))


_AT_FDCWD, _RENAME_NOREPLACE = -100, 1  # Linux constants


@dataclass(frozen=True)
class LocalStorage:
    """A folder. It must exist: a folder that disappears during a run is an error, not a new, empty store.

    - Files and folders with names that start with a dot are not objects. So listings omit the temporary files of
      unfinished writes, .DS_Store, ._photo.jpg and .git.
    - A link to a file is an object, whatever its target: collections of links are common. Links to folders are
      followed, but each folder is listed once: under its own path if it is below the root, otherwise under the first
      link to it in key order. A warning counts the other links. Devices, pipes and sockets are not objects.
    - Bytes of a file name that are not UTF-8 appear in its key as \\xhh.
    """

    root: Path
    # Give a finished file its name; fail if the name exists. The first call that the file system supports is used.
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
                "%s: %d linked folders were left out because they are listed under another name, such as %s",
                *(self.uri, len(linked.repeated), linked.repeated[0]),
            )

    def _walk(
        self, folder: str, skip: Skip, linked: _LinkedFolders, below_link: bool = False
    ) -> Iterator[StoredObject]:
        path = self._path(folder) if folder else self.root
        with self._explained(path):
            try:
                with os.scandir(path) as entries:
                    # Names only: a folder can have millions of entries, and a DirEntry takes a kilobyte.
                    names = [entry.name + "/" * _is_folder(entry) for entry in entries]
            except (FileNotFoundError, NotADirectoryError):
                return
        # Folder names end with a slash so that keys are sorted: `a.jpg`, `a/b.jpg`, `a0.jpg`.
        names.sort(key=utf8_text)
        for name in names:
            key = f"{folder}/{utf8_text(name)}" if folder else utf8_text(name)
            if skip(key) or name.startswith("."):
                continue
            if not name.endswith("/"):
                with self._explained(path):
                    found = _find(key, f"{path}/{name}")
                if found:
                    yield found
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
                return False  # avoids writing when another copy of the shard has been committed
            with self._temporary(path, [data]) as temporary:
                return self._place(temporary, path)

    def _place(self, temporary: Path, path: Path) -> bool:
        """Gives the file the name `path`. Returns False if the name exists."""
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
        self.put_chunks(key, [data])

    def put_chunks(self, key: str, chunks: Iterable[bytes]) -> None:
        path = self._path(key)
        with self._explained(path), self._temporary(path, chunks) as temporary:
            os.replace(temporary, path)
            sync_folder(path.parent)

    def link(self, key: str, target: str) -> None:
        """Makes the object a symbolic link to the file at the absolute path `target`. Does nothing if it exists."""
        path = self._path(key)
        with self._explained(path), suppress(FileExistsError):
            self._make_folders(path.parent)
            os.symlink(target, path)

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
        """Creates the folder if it does not exist."""
        with self._explained(self.root):
            self.root.mkdir(parents=True, exist_ok=True)

    def _path(self, key: str) -> Path:
        if not is_key(key):
            raise StorageError(f"{self.uri}: not a key of an object: {key!r}")
        return self.root / file_name(key)

    @contextmanager
    def _temporary(self, path: Path, chunks: Iterable[bytes]) -> Iterator[Path]:
        """A file next to `path` (same file system) with all chunks synced to disk; deleted on exit."""
        self._make_folders(path.parent)
        temporary = path.parent / f".{uuid.uuid4().hex}.tmp"
        try:
            with open(temporary, "xb") as stream:
                for chunk in chunks:
                    stream.write(chunk)
                stream.flush()
                os.fsync(stream.fileno())
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    @contextmanager
    def _explained(self, path: Path, one_file: type[StorageError] = StorageError) -> Iterator[None]:
        """Converts OSError to StorageError, or to `one_file` if the error concerns only the file at `path`."""
        try:
            yield
        except OSError as error:
            # If the root was deleted or unmounted, the error concerns the store, not one file.
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
    """Folders that one listing has visited, to detect those that links reach again."""

    root: str  # real path of the folder that is listed
    listed: set[tuple[int, int]]  # (device, inode) of the root and of the folders visited
    repeated: list[str] = field(default_factory=list[str])  # keys of folders reached again

    def is_repeated(self, path: str, key: str, is_link: bool) -> bool:
        """Whether the folder at `path` (a link, or below a link) is listed under another key."""
        identity = _identity(path)
        if identity in self.listed or (is_link and self._is_below_root(os.path.realpath(path))):
            self.repeated.append(key)
            return True
        self.listed.add(identity)
        return False

    def _is_below_root(self, path: str) -> bool:
        """Whether `path` is below the root and not hidden, so that the listing has it under its own path."""
        root = os.path.join(self.root, "")
        return path.startswith(root) and not any(part.startswith(".") for part in path.removeprefix(root).split("/"))


def _identity(path: str | Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # from a link's target; reading it reports the error
        return False


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # opening a pipe would wait for a writer


def _find(key: str, path: str) -> StoredObject | None:
    """The object at a path; of size 0 for a broken link (reading it fails); None if there is no object."""
    try:
        status = os.stat(path)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
        return StoredObject(key, 0) if os.path.islink(path) else None  # None: deleted after it was listed
    return StoredObject(key, status.st_size, status.st_mtime) if stat.S_ISREG(status.st_mode) else None


def sync_folder(folder: Path) -> None:
    """Syncs a folder, so that new file names survive a crash. Does nothing if the file system cannot sync folders."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    finally:
        os.close(descriptor)
