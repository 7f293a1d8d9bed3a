"""Opens a source: from the user's SOURCE, or from a plan."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from maskmill.pipeline.errors import ConfigError, SourceError
from maskmill.pipeline.sources.kinds import KINDS, Kind
from maskmill.pipeline.sources.names import (
    IMAGE_EXTENSIONS,
    LIST_EXTENSIONS,
    PARQUET_EXTENSIONS,
    TAR_EXTENSIONS,
    is_parquet,
    listed,
)
from maskmill.pipeline.sources.parquet_file import columns_there, open_parquet, sound
from maskmill.pipeline.sources.selection import ALL_NAMES, LeftOut, NameFilter
from maskmill.pipeline.sources.source import PlannedSource, Source
from maskmill.pipeline.storage import LocalStorage, ReadableStorage, file_name, open_readable, utf8_text

MAX_RANGE = 10**6  # files
_WILDCARDS = re.compile(r"[*?[{]")


@dataclass(frozen=True)
class _Place:
    """What exists at an address: a folder, a file, or neither (then the address can be a pattern)."""

    uri: str
    folder: ReadableStorage | None  # None if it is not a folder
    parent: ReadableStorage  # the folder that contains `name`
    name: str
    is_file: bool


def open_source(uri: str, names: NameFilter = ALL_NAMES) -> Source:
    """Opens the images at an address that `names` selects. The files decide the kind: see kinds.KINDS.

    SOURCE is a folder (on S3: a prefix) of images, of tars, or of Parquet files with images; one of these files; a
    manifest; or a pattern of tars or of Parquet files: an address with wildcards (`train-*.tar`) or one range
    (`train-{000..009}.tar`) in its last part. A Parquet file with a column of images is a source of images; otherwise,
    with a column `uri`, it is a manifest.

    Raises SourceError if SOURCE does not exist or has nothing to read, StorageError if the store cannot be reached or
    its scheme is unknown.
    """
    place = _in_a_store(uri) if "://" in uri else _on_disk(uri)
    if place.folder:
        return _open_folder(place.folder, place.uri, names)
    if place.is_file:
        return _open_file(place, names)
    for kind in KINDS.values():
        if kind.in_patterns and kind.fits_name(place.name) and (files := _matching(place)):
            return kind.open(place.parent, place.uri, files, names)
    raise SourceError(f"{uri}: no such file or folder, and no tars or Parquet files match it as a pattern")


def open_planned(planned: PlannedSource) -> Source:
    """Opens the source of a plan. It does not list or recognise files again, because the plan records them.

    Raises SourceError if the folder or file of the source no longer exists, because then all images are missing. The
    images of a manifest can be anywhere, so they are not checked here.
    """
    storage = _storage_at(planned.root)
    name = _name_in(planned)
    if planned.kind != "manifest":
        there = storage.exists(name) if name and not _WILDCARDS.search(name) else _is_there(storage)
        if not there:
            raise SourceError(
                f"{planned.uri}: the images of the run are no longer there: if they have moved, give their new place "
                "with --source"
            )
    return KINDS[planned.kind].open(storage, planned.uri, None, planned.names)


def moved(planned: PlannedSource, uri: str) -> PlannedSource:
    """The source of a plan after a move to `uri`: the new address of the same folder, file or pattern.

    Raises ConfigError if the name of the file or pattern has changed, because image ids begin with it.
    """
    uri = source_uri(uri)
    name = _name_in(planned)
    if not name:
        return replace(planned, uri=uri, root=uri)
    folder, _, new_name = uri.rpartition("/")
    if new_name != name:
        raise ConfigError(
            f"--source {uri}: the run was made from {planned.uri}: give the new folder followed by /{name}"
        )
    return replace(planned, uri=uri, root=folder or "/")


def source_uri(uri: str) -> str:
    """SOURCE as a run records it: an absolute path, or an address without a trailing slash. Sends no request."""
    return open_readable(uri).uri if "://" in uri else utf8_text(str(_path(uri)))


def _name_in(planned: PlannedSource) -> str:
    """The file name or pattern at the end of SOURCE; "" if SOURCE is the root itself."""
    return "" if planned.uri == planned.root else planned.uri.rpartition("/")[2]


def _storage_at(root: str) -> ReadableStorage:
    return open_readable(root if "://" in root else file_name(root))


def _is_there(storage: ReadableStorage) -> bool:
    """Whether the folder exists, or the prefix has any object."""
    return storage.root.is_dir() if isinstance(storage, LocalStorage) else any(islice(storage.list(), 1))


def _path(uri: str) -> Path:
    # A run records a name that is not UTF-8 with escapes, which `file_name` converts back.
    return Path(uri if os.path.lexists(uri) else file_name(uri)).absolute()


def _on_disk(uri: str) -> _Place:
    path = _path(uri)
    folder = LocalStorage(path) if os.path.isdir(path) else None
    return _Place(utf8_text(str(path)), folder, LocalStorage(path.parent), utf8_text(path.name), os.path.isfile(path))


def _in_a_store(uri: str) -> _Place:
    storage = open_readable(uri)
    head, _, name = storage.uri.rpartition("/")
    if head.endswith(":/"):  # the address ends with the bucket
        return _Place(storage.uri, storage, storage, "", is_file=False)
    parent = open_readable(head)
    if any(islice(storage.list(), 1)):
        return _Place(storage.uri, storage, parent, name, is_file=False)
    return _Place(storage.uri, None, parent, name, is_file=parent.exists(name))


def _open_folder(folder: ReadableStorage, uri: str, names: NameFilter) -> Source:
    left_out = LeftOut(names)
    other_columns = ""  # of the first Parquet file without images; such files can be metadata beside images or tars
    for item in folder.list(skip=left_out.skips):
        if is_parquet(item.key) and other_columns:
            continue
        kind, columns = _kind_of(folder, item.key)
        if kind and kind.in_folders:
            return kind.open(folder, uri, None, names)
        if columns:
            other_columns = f" ({item.key} has the columns {columns})"
    raise SourceError(
        f"{uri}: no images ({listed(IMAGE_EXTENSIONS)}), no tars ({listed(TAR_EXTENSIONS)}) and no Parquet files with "
        f"images in this folder{names.applied}{other_columns}{left_out.summary and '; '}{left_out.summary}"
    )


def _open_file(place: _Place, names: NameFilter) -> Source:
    kind, columns = _kind_of(place.parent, place.name)
    if kind:
        return kind.open(place.parent, place.uri, (place.name,), names)
    if columns:
        raise SourceError(
            f"{place.uri}: no column has images or the addresses of a manifest (uri): the columns are {columns}"
        )
    raise SourceError(
        f"{place.uri}: neither an image ({listed(IMAGE_EXTENSIONS)}) nor a tar ({listed(TAR_EXTENSIONS)}), "
        f"a Parquet file or a manifest ({listed(LIST_EXTENSIONS + PARQUET_EXTENSIONS)})"
    )


def _kind_of(storage: ReadableStorage, key: str) -> tuple[Kind | None, str]:
    """The kind of source of a file, or None; and the columns of a Parquet file, for an error message."""
    fitting = [kind for kind in KINDS.values() if kind.fits_name(key)]
    if not is_parquet(key):
        return next(iter(fitting), None), ""
    with sound(f"{storage.uri}/{key}"), open_parquet(storage, key) as file:
        schema = file.schema_arrow
        return next((k for k in fitting if k.fits_schema and k.fits_schema(schema)), None), columns_there(schema)


def _matching(place: _Place) -> tuple[str, ...]:
    """The files of one folder that match a pattern, sorted. Raises SourceError if a file of a range is missing."""
    if braces := re.fullmatch(r"(.*)\{(\d+)\.\.(\d+)\}(.*)", place.name):
        head, first, last, tail = braces.groups()
        if int(last) - int(first) >= MAX_RANGE:
            raise SourceError(f"{place.uri}: the range has more than {MAX_RANGE} files")
        names = [f"{head}{number:0{len(first)}d}{tail}" for number in range(int(first), int(last) + 1)]
        there = set(_names(place.parent, head))
        if missing := [name for name in names if name not in there]:
            raise SourceError(f"{place.uri}: {len(missing)} of these do not exist, such as {missing[0]}")
        return tuple(names)
    literal = re.split(r"[*?[]", place.name)[0]
    return tuple(sorted(name for name in _names(place.parent, literal) if fnmatch.fnmatchcase(name, place.name)))


def _names(folder: ReadableStorage, prefix: str) -> Iterator[str]:
    """Names of the files directly in a folder, at least those that start with `prefix`."""
    if isinstance(folder, LocalStorage):  # LocalStorage.list would also walk all subfolders
        yield from map(utf8_text, os.listdir(folder.root) if folder.root.is_dir() else ())
        return
    for item in folder.list(prefix):
        if "/" not in item.key:
            yield item.key
