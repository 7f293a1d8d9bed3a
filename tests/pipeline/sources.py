"""What tests of sources have in common: sources made on the fly, and what is in them.

The "images" are any bytes: sources do not decode.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from maskmill.pipeline.errors import StorageError
from maskmill.pipeline.records import Failure, ImageRecord, Shard
from maskmill.pipeline.sources import Source
from maskmill.pipeline.storage import LocalStorage


def write(root: Path, *names: str) -> None:
    """Files whose contents are their names."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def tar_bytes(members: Mapping[str, bytes] | list[tuple[str, bytes]], mode: str = "w") -> bytes:
    """A tar with these members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:  # pyright: ignore[reportCallIssue, reportArgumentType]
        for name, data in members.items() if isinstance(members, Mapping) else members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def parquet_bytes(columns: Mapping[str, Any], rows_per_group: int = 1000, **options: Any) -> bytes:
    """A Parquet file with these columns."""
    buffer = io.BytesIO()
    pq.write_table(pa.table(dict(columns)), buffer, row_group_size=rows_per_group, **options)
    return buffer.getvalue()


def hugging_face(rows: Sequence[tuple[bytes | None, str | None] | None], **options: Any) -> bytes:
    """A Parquet file as the `datasets` library writes one: a struct of bytes and path in each row."""
    images = [row and {"bytes": row[0], "path": row[1]} for row in rows]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return parquet_bytes({"image": pa.array(images, kind), "label": list(range(len(rows)))}, **options)


def shards(source: Source, images_per_shard: int = 100) -> list[Shard]:
    """The plan of the source."""
    return list(source.plan(images_per_shard))


def records(source: Source, images_per_shard: int = 100) -> list[ImageRecord]:
    """All that the source gives."""
    return [record for shard in shards(source, images_per_shard) for record in source.read(shard)]


def contents(source: Source, images_per_shard: int = 100) -> dict[str, bytes | Failure]:
    """All that the source gives, by id, of which there must be no two the same."""
    read = records(source, images_per_shard)
    by_id = {record.image_id: record.data for record in read}
    assert len(by_id) == len(read), "ids are unique"
    return by_id


@dataclass(frozen=True)
class FailingStorage(LocalStorage):
    """A store that cannot be reached any more once `bytes_left` of an object have been read."""

    bytes_left: int = 0
    error: type[StorageError] = StorageError

    def open(self, key: str) -> BinaryIO:
        return io.BufferedReader(_FailingStream(super().open(key), self.bytes_left, self.error), 512)


class _FailingStream(io.RawIOBase):
    def __init__(self, stream: BinaryIO, bytes_left: int, error: type[StorageError]) -> None:
        self._stream, self._left, self._error = stream, bytes_left, error

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._stream.seek(offset, whence)

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        data = self._stream.read(len(buffer))
        self._left -= len(data)
        if data and self._left < 0:
            raise self._error("the store is gone")
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._stream.close()
        super().close()
