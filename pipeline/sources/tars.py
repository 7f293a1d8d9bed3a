"""Images in tars, as WebDataset writes them."""

from __future__ import annotations

import re
from bz2 import BZ2File
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from gzip import GzipFile
from lzma import LZMAFile
from tarfile import (
    BLOCKSIZE,
    GNUTYPE_LONGLINK,
    GNUTYPE_LONGNAME,
    SUPPORTED_TYPES,
    XGLTYPE,
    EmptyHeaderError,  # pyright: ignore[reportAttributeAccessIssue]  # public, but not in the stubs
    EOFHeaderError,  # pyright: ignore[reportAttributeAccessIssue]
    HeaderError,
    ReadError,
    SubsequentHeaderError,  # pyright: ignore[reportAttributeAccessIssue]
    TarFile,
    TarInfo,
)
from typing import Any, BinaryIO, Self

from maskmill.pipeline.errors import ObjectError, StorageError, one_line_cause
from maskmill.pipeline.records import Failure, ImageRecord, Shard
from maskmill.pipeline.sources.names import (
    IMAGE_EXTENSIONS,
    MAX_ENCODED_BYTES,
    clean_path,
    is_image,
    is_tar,
    mixed,
    refuse_nested,
    too_large,
    unique,
)
from maskmill.pipeline.sources.selection import ALL_NAMES, LeftOut, NameFilter, reason_to_skip
from maskmill.pipeline.sources.source import PlannedSource
from maskmill.pipeline.storage import ReadableStorage

# Limits in bytes for headers, which are read whole.
_MAX_NAME = 2**20
_MAX_PAX_HEADER = 64 * 2**20
_PAX_RECORD = re.compile(rb"(\d{1,10}) ([^=]{1,1000})=")
_SPARSE = "GNU.sparse."  # prefix of the pax keywords of sparse files


@dataclass(frozen=True)
class WebDatasetTars:
    """The images in tars, plain or compressed (gz, bz2, xz). One tar is one shard, read once from start to end.

    image_id is the path of the tar relative to the source, a slash, and the name of the member without empty parts, `.`
    and `..` (nothing is extracted, but users may create files named by the ids). Repeated names get `#2`, `#3`... Ids
    are unique in a run because no tar of a source is below another.

    Members without an image extension are ignored. Hidden files, system folders, label maps and images that `names`
    does not select are left out and counted. A link or other special member with an image extension is a Failure.
    Concatenated tars are read to the end.

    If the archive is missing, damaged, truncated or without images (and none was left out), `read` yields the images
    before the error and then one Failure. Its id is the image in which reading failed, unless the shard skips that
    image; otherwise it is the path of the tar.
    """

    storage: ReadableStorage
    uri: str
    only: tuple[str, ...] | None = None
    names: NameFilter = ALL_NAMES

    @property
    def planned(self) -> PlannedSource:
        return PlannedSource("tars", self.uri, self.storage.uri, self.names)

    def plan(self, images_per_shard: int) -> Iterator[Shard]:
        keys = (key for key in self.only if not self.names.excludes(key)) if self.only else self._keys()
        for index, key in enumerate(keys):
            yield Shard(index, f"{self.storage.uri}/{key}")

    def _keys(self) -> Iterator[str]:
        left_out = LeftOut(self.names)
        yield from (item.key for item in self.storage.list(skip=left_out.skips) if self._is_tar(item.key))
        left_out.warn(self.uri)

    def _is_tar(self, key: str) -> bool:
        if is_image(key):
            raise mixed(self.uri, "images", "tars", ".tar")
        if not is_tar(key):
            return False
        refuse_nested(self.storage, key, is_tar)
        return True

    def read(self, shard: Shard, left_out: Counter[str] | None = None) -> Iterator[ImageRecord]:
        left_out = Counter() if left_out is None else left_out
        tar_key = shard.uri.removeprefix(f"{self.storage.uri}/")
        reading = tar_key
        try:
            with self.storage.open(tar_key) as stream, _open_tar(stream) as tar:
                seen: dict[str, int] = {}
                while member := tar.next():
                    name = clean_path(member.name)
                    if member.isdir() or not name.lower().endswith(IMAGE_EXTENSIONS):
                        continue
                    if reason := reason_to_skip(f"{tar_key}/{name}", self.names):
                        left_out[reason] += 1
                        continue
                    reading = unique(f"{tar_key}/{name}", seen)
                    data = _member_data(tar, member)
                    yield self._record(reading, data)
                    reading = tar_key
                if not seen and not left_out:
                    yield self._record(tar_key, Failure("fetch", "the archive has no images"))
        except ObjectError as error:
            yield self._record(tar_key if reading in shard.skip else reading, Failure("fetch", str(error)))
        except StorageError:
            raise
        except Exception as error:  # noqa: BLE001 - TarFile raises any type on damage: TypeError for a truncated gzip header
            failure = Failure("fetch", f"the archive cannot be read further: {one_line_cause(error).rstrip(':')}")
            yield self._record(tar_key if reading in shard.skip else reading, failure)

    def _record(self, image_id: str, data: bytes | Failure) -> ImageRecord:
        return ImageRecord(image_id, f"{self.storage.uri}/{image_id}", data)


class _StrictTarInfo(TarInfo):
    """Raises for a damaged or missing header, which TarFile would silently take for the end of the archive."""

    @classmethod
    def fromtarfile(cls, tarfile: TarFile) -> Self:
        assert isinstance(tarfile, _Archive)
        start = tarfile.fileobj.tell()
        try:
            member = super().fromtarfile(tarfile)
        except EOFHeaderError:  # a block of zeros
            tarfile.ended = True
            raise
        except HeaderError as error:
            if tarfile.ended and isinstance(error, (EmptyHeaderError, _PaddingError)):
                raise EmptyHeaderError from error
            raise ReadError(str(error)) from error
        if member.size < 0 or tarfile.offset <= start:
            raise ReadError("a member of negative size")
        return member

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        if 0 < len(buf) < BLOCKSIZE and not any(buf):
            raise _PaddingError("truncated header")
        return super().frombuf(buf, encoding, errors)

    def _proc_member(self, tarfile: TarFile) -> TarInfo:  # documented for overriding
        assert isinstance(tarfile, _Archive)
        tarfile.ended = False
        if self.type in (GNUTYPE_LONGNAME, GNUTYPE_LONGLINK):
            _check_name(self.size)
        return super()._proc_member(tarfile)  # pyright: ignore[reportAttributeAccessIssue]  # not in the stubs

    def _proc_pax(self, tarfile: TarFile) -> TarInfo:
        """The member after a pax header, like TarFile, but without decoding and keeping unused keywords: extended
        attributes from macOS take megabytes."""
        headers = _pax_headers(self, tarfile)
        if self.type == XGLTYPE:  # a global header applies to all following members
            tarfile.pax_headers = {**tarfile.pax_headers, **headers}
            return self.fromtarfile(tarfile)
        try:
            member: Any = self.fromtarfile(tarfile)
        except EOFHeaderError as error:
            raise SubsequentHeaderError("a pax header without a member") from error
        member._apply_pax_info({**tarfile.pax_headers, **headers}, tarfile.encoding, tarfile.errors)
        member.offset = self.offset
        if any(keyword.startswith(_SPARSE) for keyword in headers):
            member.sparse = []
        elif "size" in headers and (member.isreg() or member.type not in SUPPORTED_TYPES):
            tarfile.offset = member.offset_data + member._block(member.size)
        return member


class _Archive(TarFile):
    """Continues after an end marker, as `tar --ignore-zeros` does, because another tar can follow."""

    tarinfo = _StrictTarInfo
    encoding = "utf-8"
    ignore_zeros = True
    ended = False  # True between a block of zeros and the next header

    def next(self) -> TarInfo | None:
        # TarFile would keep the headers of all members in memory.
        self.members.clear()  # pyright: ignore[reportAttributeAccessIssue]  # not in the stubs
        return super().next()


class _PaddingError(HeaderError):
    """The last block of the file is incomplete and has only zeros."""


def _pax_headers(info: Any, tarfile: Any) -> dict[str, str]:
    """The path, size and sparse keywords of a pax header. Raises ReadError if it is damaged or too large."""
    if not 0 <= info.size <= _MAX_PAX_HEADER:
        raise ReadError(f"a pax header of {info.size} bytes: the limit is {_MAX_PAX_HEADER}")
    data = tarfile.fileobj.read(info._block(info.size))[: info.size]
    headers: dict[str, str] = {}
    start = 0
    while start < len(data) and data[start]:
        record = _PAX_RECORD.match(data, start)
        end = start + int(record[1]) if record else 0
        if not record or not record.end() < end or data[end - 1 : end] != b"\n":
            raise ReadError("a damaged pax header")
        keyword = record[2].decode("utf-8", tarfile.errors)
        if keyword in ("path", "size", f"{_SPARSE}name"):
            _check_name(end - record.end())
            headers[keyword] = data[record.end() : end - 1].decode("utf-8", tarfile.errors)
        elif keyword.startswith(_SPARSE):
            headers[_SPARSE] = ""
        start = end
    return headers


def _check_name(size: int) -> None:
    if not 0 <= size <= _MAX_NAME:
        raise ReadError(f"a name of {size} bytes")


def _open_tar(stream: BinaryIO) -> TarFile:
    """Opens the archive; the first bytes decide the compression."""
    start = stream.read(6)
    stream.seek(0)
    if start.startswith(b"\x1f\x8b"):
        return _Archive(fileobj=GzipFile(fileobj=stream))
    if not start.startswith((b"BZh", b"\xfd7zXZ\0")):
        return _Archive(fileobj=stream)
    decompressed: Any = (BZ2File if start.startswith(b"BZh") else LZMAFile)(stream)
    # Without this, damage between two compressed streams would silently end the archive.
    decompressed._buffer.raw._trailing_error = ()
    return _Archive(fileobj=decompressed)


def _member_data(tar: TarFile, member: TarInfo) -> bytes | Failure:
    if not member.isreg() or member.issparse():
        return Failure("fetch", "a link or other special member of the archive, which is not followed")
    if member.size > MAX_ENCODED_BYTES:
        return too_large(member.size)
    stream = tar.extractfile(member)
    assert stream is not None, "a regular member has contents"
    return stream.read()
