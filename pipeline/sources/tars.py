"""Images in tars, as WebDataset has them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from tarfile import (
    GNUTYPE_LONGLINK,
    GNUTYPE_LONGNAME,
    SOLARIS_XHDTYPE,
    XGLTYPE,
    XHDTYPE,
    EOFHeaderError,  # pyright: ignore[reportAttributeAccessIssue]  # public, but not in the stubs
    HeaderError,
    ReadError,
    TarFile,
    TarInfo,
)
from typing import Self

from maskmill.pipeline.errors import ObjectError, StorageError
from maskmill.pipeline.records import Failure, ImageRecord, Shard
from maskmill.pipeline.sources.names import (
    MAX_ENCODED_BYTES,
    clean_path,
    is_image,
    is_tar,
    mixed,
    refuse_nested,
    too_large,
    unique,
)
from maskmill.pipeline.sources.source import PlannedSource
from maskmill.pipeline.storage import Storage

# Headers that hold the name of the member that follows. TarFile reads them whole.
_NAME_HEADERS = (GNUTYPE_LONGNAME, GNUTYPE_LONGLINK, XHDTYPE, XGLTYPE, SOLARIS_XHDTYPE)
_MAX_NAME_HEADER = 2**20  # bytes


@dataclass(frozen=True)
class WebDatasetTars:
    """The images in tars, one shard per tar, each read once from start to end, compressed (gz, bz2, xz) or not.

    image_id is the tar's path relative to the source, a slash, and the member's name. In the name, parts that are
    empty, `.` or `..` are left out (nothing is ever extracted, but somebody may make files of the ids), and a name that
    came before gets `#2`, `#3`... in order of appearance. So ids are unique in a tar, and in a run because no tar of a
    source lies below another. Members without an image's extension, and hidden ones, are left out; a link or any other
    special member under an image's name is a Failure: it is not followed.

    Where the archive is missing, damaged, ends early or has no images, the images read so far stand, one Failure
    follows, and nothing more: every archive has a row. The Failure has the id of the image inside which reading broke
    off, unless that is one to skip, else the path of the tar alone.
    """

    storage: Storage
    uri: str
    only: tuple[str, ...] | None = None

    @property
    def planned(self) -> PlannedSource:
        return PlannedSource("tars", self.uri, self.storage.uri)

    def plan(self, images_per_shard: int) -> Iterator[Shard]:
        keys = self.only or (item.key for item in self.storage.list() if self._is_tar(item.key))
        for index, key in enumerate(keys):
            yield Shard(index, f"{self.storage.uri}/{key}")

    def _is_tar(self, key: str) -> bool:
        if is_image(key):
            raise mixed(self.uri, "images", "tars", ".tar")
        if not is_tar(key):
            return False
        refuse_nested(self.storage, key, is_tar)
        return True

    def read(self, shard: Shard) -> Iterator[ImageRecord]:
        tar_key = shard.uri.removeprefix(f"{self.storage.uri}/")
        reading = tar_key
        try:
            with (
                self.storage.open(tar_key) as stream,
                TarFile.open(fileobj=stream, mode="r:*", encoding="utf-8", tarinfo=_StrictTarInfo) as tar,
            ):
                seen: dict[str, int] = {}
                while member := tar.next():
                    _forget_members(tar)
                    name = clean_path(member.name)
                    if member.isdir() or not is_image(name):
                        continue
                    reading = unique(f"{tar_key}/{name}", seen)
                    data = _member_data(tar, member)
                    yield self._record(reading, data)
                    reading = tar_key
                if not seen:
                    yield self._record(tar_key, Failure("fetch", "the archive has no images in it"))
        except ObjectError as error:
            yield self._record(tar_key if reading in shard.skip else reading, Failure("fetch", str(error)))
        except StorageError:
            raise
        except Exception as error:  # noqa: BLE001 - damage makes TarFile raise anything, TypeError from a cut gzip header
            cause = str(error).partition("\n")[0].rstrip(":")
            failure = Failure("fetch", f"the archive cannot be read further: {cause}")
            yield self._record(tar_key if reading in shard.skip else reading, failure)

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

    def _proc_member(self, tarfile: TarFile) -> TarInfo:  # the method that is there to be overridden
        if self.type in _NAME_HEADERS and self.size > _MAX_NAME_HEADER:
            raise ReadError(f"a name of {self.size} bytes")
        return super()._proc_member(tarfile)  # pyright: ignore[reportAttributeAccessIssue]  # not in the stubs


def _forget_members(tar: TarFile) -> None:
    """TarFile would keep the header of every member of an archive of any length."""
    tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue]  # not in the stubs


def _member_data(tar: TarFile, member: TarInfo) -> bytes | Failure:
    if not member.isreg() or member.issparse():
        return Failure("fetch", "a link or another special member of the archive, which is not followed")
    if member.size > MAX_ENCODED_BYTES:
        return too_large(member.size)
    stream = tar.extractfile(member)
    assert stream is not None, "regular members have contents"
    return stream.read()
