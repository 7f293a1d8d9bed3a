"""From what a user writes for SOURCE to the source that is meant."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from maskmill.pipeline.errors import SourceError
from maskmill.pipeline.sources.folder import ImageFolder
from maskmill.pipeline.sources.manifest import Manifest
from maskmill.pipeline.sources.manifest_rows import is_manifest
from maskmill.pipeline.sources.names import (
    IMAGE_EXTENSIONS,
    LIST_EXTENSIONS,
    PARQUET_EXTENSIONS,
    TAR_EXTENSIONS,
    is_image,
    is_list,
    is_parquet,
    is_tar,
    listed,
)
from maskmill.pipeline.sources.parquet import ParquetImages, image_columns
from maskmill.pipeline.sources.parquet_file import columns_there, open_parquet, sound
from maskmill.pipeline.sources.source import Source
from maskmill.pipeline.sources.tars import WebDatasetTars
from maskmill.pipeline.storage import LocalStorage, Storage, file_name, open_storage, utf8_text

MAX_RANGE = 10**6  # files


@dataclass(frozen=True)
class _Place:
    """What is at an address: perhaps a folder, perhaps a file, perhaps neither, so that it can be a pattern."""

    uri: str
    folder: Storage | None  # if it is one
    parent: Storage  # the folder that the name is in
    name: str
    is_file: bool


def open_source(uri: str) -> Source:
    """The source at a path or at s3://bucket/prefix.

    A folder (on S3: a prefix) of images, of tars, or of Parquet files with images; one of these files; a manifest; or a
    pattern of tars or of Parquet files: an address whose last part has wildcards (`train-*.tar`) or one range
    (`train-{000..009}.tar`). A Parquet file with a column of images is images, else with a column `uri` a manifest.

    Raises SourceError where there is no such thing, or nothing to read in it, and StorageError where the store cannot
    be reached, or is of another kind.
    """
    place = _in_a_store(uri) if "://" in uri else _on_disk(uri)
    if place.folder:
        return _open_folder(place.folder, place.uri)
    if place.is_file:
        return _open_file(place)
    if is_tar(place.name) and (names := _matching(place)):
        return WebDatasetTars(place.parent, place.uri, only=names)
    if is_parquet(place.name) and (names := _matching(place)):
        return ParquetImages(place.parent, place.uri, only=names)
    raise SourceError(f"{uri}: no such file or folder, and no tars or Parquet files match it as a pattern")


def _on_disk(uri: str) -> _Place:
    # The text that a run remembers of a name that is not UTF-8 is no name itself.
    path = Path(uri if os.path.lexists(uri) else file_name(uri)).absolute()
    folder = LocalStorage(path) if os.path.isdir(path) else None
    return _Place(utf8_text(str(path)), folder, LocalStorage(path.parent), utf8_text(path.name), os.path.isfile(path))


def _in_a_store(uri: str) -> _Place:
    storage = open_storage(uri)
    head, _, name = storage.uri.rpartition("/")
    if head == "s3:/":
        return _Place(storage.uri, storage, storage, "", is_file=False)
    parent = open_storage(head)
    if any(islice(storage.list(), 1)):
        return _Place(storage.uri, storage, parent, name, is_file=False)
    return _Place(storage.uri, None, parent, name, is_file=parent.exists(name))


def _open_folder(folder: Storage, uri: str) -> Source:
    other_columns = None  # of Parquet files without images, which tell about the images or tars beside them
    for item in folder.list():
        if is_image(item.key):
            return ImageFolder(folder, uri)
        if is_tar(item.key):
            return WebDatasetTars(folder, uri)
        if is_parquet(item.key) and other_columns is None:
            with sound(f"{folder.uri}/{item.key}"), open_parquet(folder, item.key) as file:
                if image_columns(file.schema_arrow):
                    return ParquetImages(folder, uri)
                other_columns = f" ({item.key} has the columns {columns_there(file.schema_arrow)})"
    raise SourceError(
        f"{uri}: no images ({listed(IMAGE_EXTENSIONS)}), no tars ({listed(TAR_EXTENSIONS)}) and no Parquet files with "
        f"images in this folder{other_columns or ''}"
    )


def _open_file(place: _Place) -> Source:
    parent, name = place.parent, place.name
    if is_image(name):
        return ImageFolder(parent, place.uri, only=name)
    if is_tar(name):
        return WebDatasetTars(parent, place.uri, only=(name,))
    if is_list(name):
        return Manifest(parent, place.uri, name)
    if not is_parquet(name):
        raise SourceError(
            f"{place.uri}: neither an image ({listed(IMAGE_EXTENSIONS)}) nor a tar ({listed(TAR_EXTENSIONS)}), "
            f"a Parquet file or a manifest ({listed(LIST_EXTENSIONS + PARQUET_EXTENSIONS)})"
        )
    with sound(place.uri), open_parquet(parent, name) as file:
        if image_columns(file.schema_arrow):
            return ParquetImages(parent, place.uri, only=(name,))
        if is_manifest(file.schema_arrow):
            return Manifest(parent, place.uri, name)
        raise SourceError(
            f"{place.uri}: no column holds images, and none is the uri of a manifest: there are "
            f"{columns_there(file.schema_arrow)}"
        )


def _matching(place: _Place) -> tuple[str, ...]:
    """The files of one folder that match a pattern, in order. SourceError where one in a range is missing."""
    if braces := re.fullmatch(r"(.*)\{(\d+)\.\.(\d+)\}(.*)", place.name):
        head, first, last, tail = braces.groups()
        if int(last) - int(first) >= MAX_RANGE:
            raise SourceError(f"{place.uri}: a range of more than {MAX_RANGE} files")
        names = [f"{head}{number:0{len(first)}d}{tail}" for number in range(int(first), int(last) + 1)]
        there = set(_names(place.parent, head))
        if missing := [name for name in names if name not in there]:
            raise SourceError(f"{place.uri}: {len(missing)} of these do not exist, such as {missing[0]}")
        return tuple(names)
    literal = re.split(r"[*?[]", place.name)[0]
    return tuple(sorted(name for name in _names(place.parent, literal) if fnmatch.fnmatchcase(name, place.name)))


def _names(folder: Storage, prefix: str) -> Iterator[str]:
    """The names of the files in a folder that begin with `prefix`, and perhaps others; not those in folders below."""
    if isinstance(folder, LocalStorage):  # its listing would go through all folders below
        yield from map(utf8_text, os.listdir(folder.root) if folder.root.is_dir() else ())
        return
    for item in folder.list(prefix):
        if "/" not in item.key:
            yield item.key
