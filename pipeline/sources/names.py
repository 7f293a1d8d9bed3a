"""Shared by all kinds of sources: file extensions, image ids, parallel fetching and the size limit of an image."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from pathlib import PurePosixPath

from maskmill.pipeline.errors import ObjectError, SourceError
from maskmill.pipeline.pools import generator_threads
from maskmill.pipeline.records import Failure
from maskmill.pipeline.storage import ReadableStorage, utf8_text

# The raster formats that pipeline/images.py decodes, recognised by extension, in upper or lower case: opening each file
# of a large folder to detect its format would take as long as the run.
IMAGE_EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
TAR_EXTENSIONS = (".tar", ".tar.gz", ".tgz")
PARQUET_EXTENSIONS = (".parquet",)
LIST_EXTENSIONS = (".csv", ".jsonl")  # manifests; a Parquet file can be one too
# Images within the pixel limit are smaller; a larger file is not an image, whatever its name.
MAX_ENCODED_BYTES = 512 * 2**20
# Concurrent fetches of one shard if each image is an object: 160 images a second at 50 ms latency.
FETCHES = 8


def is_image(key: str) -> bool:
    """Whether a path has the extension of an image and no hidden part."""
    return _is(key, IMAGE_EXTENSIONS)


def is_tar(key: str) -> bool:
    """Whether a path has the extension of a tar and no hidden part."""
    return _is(key, TAR_EXTENSIONS)


def is_parquet(key: str) -> bool:
    """Whether a path has the extension of a Parquet file and no hidden part."""
    return _is(key, PARQUET_EXTENSIONS)


def is_list(key: str) -> bool:
    """Whether a path has the extension of a text manifest and no hidden part."""
    return _is(key, LIST_EXTENSIONS)


def _is(key: str, extensions: tuple[str, ...]) -> bool:
    return key.lower().endswith(extensions) and not any(part.startswith(".") for part in key.split("/"))


def listed(extensions: tuple[str, ...]) -> str:
    """Extensions for a message."""
    return ", ".join(extension.removeprefix(".") for extension in extensions)


def clean_path(path: str) -> str:
    """A path without empty parts, `.` and `..`, so that files named by image ids stay in one folder."""
    return "/".join(part for part in utf8_text(path).split("/") if part not in ("", ".", ".."))


def unique(image_id: str, seen: dict[str, int]) -> str:
    """Adds `#2`, `#3`... to a repeated id. `seen` holds the ids so far, and starts empty."""
    if image_id not in seen:
        seen[image_id] = 1
        return image_id
    number = seen[image_id] + 1
    while f"{image_id}#{number}" in seen:
        number += 1
    seen[image_id] = number
    return unique(f"{image_id}#{number}", seen)


def fetch(storage: ReadableStorage, key: str) -> bytes | Failure:
    """Reads one encoded image. Raises StorageError if the store cannot be reached."""
    try:
        with storage.open(key) as stream:
            size = stream.seek(0, os.SEEK_END)
            if size > MAX_ENCODED_BYTES:
                return too_large(size)
            stream.seek(0)
            return stream.read(size)
    except (ObjectError, OSError) as error:
        return Failure("fetch", str(error))


def fetch_ahead(fetch: Callable[[str], bytes | Failure], names: Iterable[str]) -> Iterator[bytes | Failure]:
    """Yields the results of `fetch` in order, with FETCHES calls at once to hide the latency of the store."""
    with generator_threads(FETCHES) as threads:
        window: deque[Future[bytes | Failure]] = deque()
        for name in names:
            if len(window) == FETCHES:
                yield window.popleft().result()
            window.append(threads.submit(fetch, name))
        while window:
            yield window.popleft().result()


def too_large(size: int) -> Failure:
    """The Failure of an image with more bytes than the limit."""
    return Failure("fetch", f"{size} bytes: the limit for an encoded image is {MAX_ENCODED_BYTES}")


def refuse_nested(storage: ReadableStorage, key: str, holds_images: Callable[[str], bool]) -> None:
    """Raises SourceError if an object is below another one (a.tar/b.tar): their images could have the same id."""
    for parent in PurePosixPath(key).parents:
        if holds_images(parent.name) and storage.exists(str(parent)):
            raise SourceError(f"{storage.uri}/{key}: is below {parent}, which is itself a file: move one of them")


def mixed(uri: str, kind: str, others: str, extension: str) -> SourceError:
    """The error for a folder that has two kinds of sources, such as images and tars."""
    return SourceError(
        f"{uri}: has both {kind} and {others}: leave the {others} out with --exclude '*{extension}', or select them "
        f"with a pattern such as {uri}/*{extension}"
    )
