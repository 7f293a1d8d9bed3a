"""Parquet files that others wrote, read in bounded memory and without trust."""

# pyarrow ships no types: strict checking would find every line that touches it unknown.
# pyright: standard
from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from maskmill.pipeline.errors import SourceError, one_line_cause
from maskmill.pipeline.storage import ReadableStorage, one_line

# What pyarrow raises where a file is damaged, besides what the store raises. ArrowInvalid is a ValueError.
DAMAGE = (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError)
BUFFER = 1 << 18  # bytes of each column that are fetched at once


@contextmanager
def open_parquet(storage: ReadableStorage, key: str) -> Generator[pq.ParquetFile]:
    """The file, to be read by `rows`. Raises one of DAMAGE where it is no Parquet, and StorageError."""
    with storage.open(key) as stream:
        size = stream.seek(0, os.SEEK_END)
        # Buffers, since otherwise a column chunk is fetched whole. No fetching ahead and no threads: pyarrow's threads
        # now and then abort the process when it exits.
        options = {"buffer_size": BUFFER, "pre_buffer": False, "page_checksum_verification": True}
        with pq.ParquetFile(pa.PythonFile(stream, mode="r"), **options) as file:
            groups = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            if min(groups, default=0) < 0 or sum(groups) != file.metadata.num_rows or sum(groups) > size:
                raise ValueError(f"{file.metadata.num_rows} rows in {size} bytes")
            yield file


def rows(file: pq.ParquetFile, columns: list[str], at_once: int, group: int | None = None) -> Iterator[dict[str, Any]]:
    """The rows of the file or of one row group, decoded `at_once`, with these columns or leaves of columns (`a.b`).

    A leaf has the name of its column. Strings come as bytes, since what is not UTF-8 would raise. Raises one of DAMAGE,
    and StorageError.
    """
    groups = range(file.num_row_groups) if group is None else [group]
    for batch in file.iter_batches(at_once, row_groups=list(groups), columns=columns, use_threads=False):
        batch = pa.RecordBatch.from_arrays([_as_bytes(column) for column in batch.columns], batch.schema.names)
        batch.validate(full=True)  # offsets that lead out of a buffer would end the process
        yield from batch.to_pylist()


def _as_bytes(column: pa.Array) -> pa.Array:
    if pa.types.is_struct(column.type):
        return _as_bytes(column.flatten()[0])
    if pa.types.is_string(column.type):
        return column.view(pa.binary())
    return column.view(pa.large_binary()) if pa.types.is_large_string(column.type) else column


def is_string(schema: pa.Schema, name: str) -> bool:
    """Whether there is one column of this name, and it holds strings."""
    index = schema.get_field_index(name)  # -1 for a name that is there twice, too
    return index >= 0 and (pa.types.is_string(schema.types[index]) or pa.types.is_large_string(schema.types[index]))


@contextmanager
def sound(address: str) -> Generator[None]:
    """Turns damage of a file that is needed for planning into SourceError."""
    try:
        yield
    except DAMAGE as error:
        raise SourceError(f"{address}: damaged, or no Parquet: {one_line_cause(error)}") from error


def columns_there(schema: pa.Schema) -> str:
    """The columns of a file as a message has them."""
    return one_line(", ".join(f"{field.name} ({field.type!s:.200})" for field in list(schema)[:20]))
