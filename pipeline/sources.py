"""What images are read from: folders of image files, and WebDataset tars."""

from __future__ import annotations

import fnmatch
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tarfile import (
    EOFHeaderError,  # pyright: ignore[reportAttributeAccessIssue]  # public, but not in the stubs
    HeaderError,
    ReadError,
    TarFile,
    TarInfo,
)
from typing import Protocol, Self

from pipeline.errors import SourceError, StorageError
from pipeline.records import Failure, ImageRecord, Shard
from pipeline.storage import LocalStorage, Storage, utf8_text

# By name, in any case, since opening every file of a large folder to look would take as long as the run. The raster
# formats that pipeline/images.py decodes.
IMAGE_EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
TAR_EXTENSIONS = (".tar", ".tar.gz", ".tgz")
# No image within the pixel limit is larger encoded; what is, is something else under an image's name.
MAX_ENCODED_BYTES = 512 * 2**20

logger = logging.getLogger(__name__)


class Source(Protocol):
    """Images in a fixed order, in shards. Implementations are picklable: they travel to the actors.

    What cannot be read never raises from `read`: it is a record that holds a Failure instead of bytes.
    """

    @property
    def uri(self) -> str:
        """What `open_source` makes the same source of, anywhere."""
        ...

    def plan(self, images_per_shard: int) -> Iterator[Shard]:
        """The shards, the same for the same contents. SourceError, possibly after some shards, if it is unfit."""
        ...

    def read(self, shard: Shard) -> Iterator[ImageRecord]:
        """The images of one shard, in order."""
        ...


def open_source(uri: str) -> Source:
    """The source at a local path: an image, a folder of images, a tar, a folder of tars, or a pattern of tars.

    A pattern is a path whose last part has wildcards (`train-*.tar`) or one range (`train-{000..009}.tar`).
    Raises SourceError where there is no such thing, or nothing to read in it.
    """
    if "://" in uri:
        raise SourceError(f"{uri}: this version reads local disk only: give a path")
    path = Path(uri).absolute()
    address = utf8_text(str(path))
    if os.path.isdir(path):
        storage = LocalStorage(path)
        for item in storage.list():
            if is_image(item.key):
                return ImageFolder(storage, address)
            if is_tar(item.key):
                return WebDatasetTars(storage, address)
        raise SourceError(f"{uri}: no images ({_listed(IMAGE_EXTENSIONS)}) and no tars in this folder")
    folder, name = LocalStorage(path.parent), utf8_text(path.name)
    if os.path.isfile(path):
        if is_image(name):
            return ImageFolder(folder, address, only=name)
        if is_tar(name):
            return WebDatasetTars(folder, address, only=(name,))
        raise SourceError(
            f"{uri}: neither an image ({_listed(IMAGE_EXTENSIONS)}) nor a tar ({_listed(TAR_EXTENSIONS)})"
        )
    if os.path.isdir(path.parent) and (names := _matching_tars(path.parent, name)):
        return WebDatasetTars(folder, address, only=names)
    raise SourceError(f"{uri}: no such file or folder, and no tars match it as a pattern")


def is_image(key: str) -> bool:
    """Whether a path names an image: by its extension, and no part of it is hidden."""
    return key.lower().endswith(IMAGE_EXTENSIONS) and not any(part.startswith(".") for part in key.split("/"))


def is_tar(key: str) -> bool:
    """Whether a path names a tar, by its extension."""
    return key.lower().endswith(TAR_EXTENSIONS)


@dataclass(frozen=True)
class ImageFolder:
    """The images in a folder and the folders below it, by extension, sorted; or one of them.

    image_id is the path relative to the folder. Hidden and linked files: see LocalStorage. Other files are left out,
    with a warning that counts them; a folder that also holds tars is refused, since either could be what was meant.
    """

    storage: Storage
    uri: str
    only: str | None = None

    def plan(self, images_per_shard: int) -> Iterator[Shard]:
        index, image_ids = 0, list[str]()
        for image_id in [self.only] if self.only else self._image_ids():
            image_ids.append(image_id)
            if len(image_ids) == images_per_shard:
                yield Shard(index, self.storage.uri, tuple(image_ids))
                index, image_ids = index + 1, []
        if image_ids:
            yield Shard(index, self.storage.uri, tuple(image_ids))

    def _image_ids(self) -> Iterator[str]:
        left_out: Counter[str] = Counter()
        for item in self.storage.list():
            if is_image(item.key):
                yield item.key
            elif is_tar(item.key):
                raise _mixed(self.uri)
            else:
                left_out[PurePosixPath(item.key).suffix.lower() or "no extension"] += 1
        if left_out:
            kinds = ", ".join(f"{kind}: {count}" for kind, count in left_out.most_common(5))
            logger.warning("%s: %d files are no images and were left out (%s)", self.uri, left_out.total(), kinds)

    def read(self, shard: Shard) -> Iterator[ImageRecord]:
        for image_id in shard.image_ids or ():
            yield ImageRecord(image_id, f"{self.storage.uri}/{image_id}", self._fetch(image_id))

    def _fetch(self, key: str) -> bytes | Failure:
        try:
            with self.storage.open(key) as stream:
                size = stream.seek(0, os.SEEK_END)
                if size > MAX_ENCODED_BYTES:
                    return _too_large(size)
                stream.seek(0)
                return stream.read()
        except (StorageError, OSError) as error:
            return Failure("fetch", str(error))


@dataclass(frozen=True)
class WebDatasetTars:
    """The images in tars, one shard per tar, each read once from start to end, compressed (gz, bz2, xz) or not.

    image_id is the tar's path relative to the source, a slash, and the member's name. In the name, parts that are
    empty, `.` or `..` are left out (nothing is ever extracted, but somebody may make files of the ids), and a name that
    came before gets `#2`, `#3`... in order of appearance. Members without an image's extension, and hidden ones, are
    left out; a link or any other special member under an image's name is a Failure: it is not followed.

    Where the archive is damaged or ends early, the images read so far stand, one Failure follows, and nothing more.
    It has the id of the image inside which reading broke off, else the path of the tar alone.
    """

    storage: Storage
    uri: str
    only: tuple[str, ...] | None = None

    def plan(self, images_per_shard: int) -> Iterator[Shard]:
        keys = self.only or (item.key for item in self.storage.list() if self._is_tar(item.key))
        for index, key in enumerate(keys):
            yield Shard(index, f"{self.storage.uri}/{key}")

    def _is_tar(self, key: str) -> bool:
        if is_image(key):
            raise _mixed(self.uri)
        return is_tar(key)

    def read(self, shard: Shard) -> Iterator[ImageRecord]:
        tar_key = shard.uri.removeprefix(f"{self.storage.uri}/")
        reading = tar_key
        try:
            with (
                self.storage.open(tar_key) as stream,
                TarFile.open(fileobj=stream, mode="r:*", encoding="utf-8", tarinfo=_StrictTarInfo) as tar,
            ):
                seen: set[str] = set()
                while member := tar.next():
                    name = _clean_name(member.name)
                    if member.isdir() or not is_image(name):
                        continue
                    reading = _unique(f"{tar_key}/{name}", seen)
                    data = _member_data(tar, member)
                    yield self._record(reading, data)
                    reading = tar_key
        except Exception as error:  # noqa: BLE001 - damage makes TarFile raise anything, TypeError from a cut gzip header
            cause = str(error).partition("\n")[0].rstrip(":")
            yield self._record(reading, Failure("fetch", f"the archive cannot be read further: {cause}"))

    def _record(self, image_id: str, data: bytes | Failure) -> ImageRecord:
        return ImageRecord(image_id, f"{self.storage.uri}/{image_id}", data)


class _StrictTarInfo(TarInfo):
    """Makes a damaged or missing header an error; TarFile itself takes it for the end of the archive, silently."""

    @classmethod
    def fromtarfile(cls, tarfile: TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile)
        except EOFHeaderError:  # the end marker
            raise
        except HeaderError as error:
            raise ReadError(str(error)) from error


def _member_data(tar: TarFile, member: TarInfo) -> bytes | Failure:
    if not member.isreg() or member.issparse():
        return Failure("fetch", "a link or another special member of the archive, which is not followed")
    if member.size > MAX_ENCODED_BYTES:
        return _too_large(member.size)
    stream = tar.extractfile(member)
    assert stream is not None, "regular members have contents"
    return stream.read()


def _too_large(size: int) -> Failure:
    return Failure("fetch", f"{size} bytes: the limit for an encoded image is {MAX_ENCODED_BYTES}")


def _clean_name(name: str) -> str:
    return "/".join(part for part in utf8_text(name).split("/") if part not in ("", ".", ".."))


def _unique(image_id: str, seen: set[str]) -> str:
    unique, number = image_id, 1
    while unique in seen:
        number += 1
        unique = f"{image_id}#{number}"
    seen.add(unique)
    return unique


def _matching_tars(folder: Path, pattern: str) -> tuple[str, ...]:
    """The tars in one folder that match a pattern, in order. SourceError where one in a range is missing."""
    if not is_tar(pattern):
        return ()
    if braces := re.fullmatch(r"(.*)\{(\d+)\.\.(\d+)\}(.*)", pattern):
        head, first, last, tail = braces.groups()
        names = [f"{head}{number:0{len(first)}d}{tail}" for number in range(int(first), int(last) + 1)]
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise SourceError(f"{folder / pattern}: {len(missing)} of these do not exist, such as {missing[0]}")
        return tuple(names)
    return tuple(sorted(utf8_text(name) for name in fnmatch.filter(os.listdir(folder), pattern)))


def _mixed(uri: str) -> SourceError:
    return SourceError(
        f"{uri}: holds both images and tars: keep them apart, or name the tars with a pattern such as {uri}/*.tar"
    )


def _listed(extensions: tuple[str, ...]) -> str:
    return ", ".join(extension.removeprefix(".") for extension in extensions)
