"""Names of images and of what holds them, and the limit for one image: what all kinds of sources have in common."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import PurePosixPath

from maskmill.pipeline.errors import ObjectError, SourceError
from maskmill.pipeline.records import Failure
from maskmill.pipeline.storage import ReadableStorage, utf8_text

# By name, in any case, since opening every file of a large folder to look would take as long as the run. The raster
# formats that pipeline/images.py decodes.
IMAGE_EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
TAR_EXTENSIONS = (".tar", ".tar.gz", ".tgz")
PARQUET_EXTENSIONS = (".parquet",)
LIST_EXTENSIONS = (".csv", ".jsonl")  # of manifests; a Parquet file may be one too
# No image within the pixel limit is larger encoded; what is, is something else under an image's name.
MAX_ENCODED_BYTES = 512 * 2**20
# Images of a shard that are fetched at once, where each is an object of its own: 160 a second at 50 ms for an answer.
FETCHES = 8


def is_image(key: str) -> bool:
    """Whether a path names an image: by its extension, and no part of it is hidden."""
    return _is(key, IMAGE_EXTENSIONS)


def is_tar(key: str) -> bool:
    """Whether a path names a tar, in the same way."""
    return _is(key, TAR_EXTENSIONS)


def is_parquet(key: str) -> bool:
    """Whether a path names a Parquet file, in the same way."""
    return _is(key, PARQUET_EXTENSIONS)


def is_list(key: str) -> bool:
    """Whether a path names a manifest that is text, in the same way."""
    return _is(key, LIST_EXTENSIONS)


def _is(key: str, extensions: tuple[str, ...]) -> bool:
    return key.lower().endswith(extensions) and not any(part.startswith(".") for part in key.split("/"))


def listed(extensions: tuple[str, ...]) -> str:
    """Extensions as a message has them."""
    return ", ".join(extension.removeprefix(".") for extension in extensions)


def clean_path(path: str) -> str:
    """A path without the parts that are empty, `.` or `..`: whoever makes files of image ids stays in his folder."""
    return "/".join(part for part in utf8_text(path).split("/") if part not in ("", ".", ".."))


def unique(image_id: str, seen: dict[str, int]) -> str:
    """The id, with `#2`, `#3`... where it came before. `seen` holds the ids so far; it begins empty."""
    if image_id not in seen:
        seen[image_id] = 1
        return image_id
    number = seen[image_id] + 1
    while f"{image_id}#{number}" in seen:
        number += 1
    seen[image_id] = number
    return unique(f"{image_id}#{number}", seen)


def fetch(storage: ReadableStorage, key: str) -> bytes | Failure:
    """One encoded image. StorageError where the store cannot be reached."""
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
    """What `fetch` makes of each name, in order, FETCHES of them at once: a store takes its time to answer."""
    with ThreadPoolExecutor(FETCHES) as threads:
        window: deque[Future[bytes | Failure]] = deque()
        for name in names:
            if len(window) == FETCHES:
                yield window.popleft().result()
            window.append(threads.submit(fetch, name))
        while window:
            yield window.popleft().result()


def too_large(size: int) -> Failure:
    """What becomes of an image of `size` bytes, where that is over the limit."""
    return Failure("fetch", f"{size} bytes: the limit for an encoded image is {MAX_ENCODED_BYTES}")


def refuse_nested(storage: ReadableStorage, key: str, holds_images: Callable[[str], bool]) -> None:
    """SourceError where the file `key` lies below another one, as an object can: their images could share an id."""
    for parent in PurePosixPath(key).parents:
        if holds_images(parent.name) and storage.exists(str(parent)):
            raise SourceError(f"{storage.uri}/{key}: lies below {parent}, which is a file itself: keep them apart")


def mixed(uri: str, kind: str, others: str, extension: str) -> SourceError:
    """The error for a folder that holds images of some kind in two ways: the `others` can be named by a pattern."""
    return SourceError(
        f"{uri}: holds both {kind} and {others}: leave the {others} out with --exclude '*{extension}', or name them "
        f"with a pattern such as {uri}/*{extension}"
    )
