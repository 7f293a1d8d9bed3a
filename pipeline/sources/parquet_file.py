"""Reads untrusted Parquet files in bounded memory."""

# pyarrow has no type stubs; strict checking would report each use of it.
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

# What pyarrow raises for damaged files (errors of the store come through). ArrowInvalid is a ValueError.
DAMAGE = (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError)
BUFFER = 1 << 18  # bytes per read of a column


@contextmanager
def open_parquet(storage: ReadableStorage, key: str) -> Generator[pq.ParquetFile]:
    """Opens a file for `rows`. Raises one of DAMAGE if it is not valid Parquet, and StorageError."""
    with storage.open(key) as stream:
        size = stream.seek(0, os.SEEK_END)
        # Buffers, because otherwise pyarrow reads whole column chunks. No prefetching and no threads, because threads
        # of pyarrow sometimes abort the process at exit.
        options = {"buffer_size": BUFFER, "pre_buffer": False, "page_checksum_verification": True}
        with pq.ParquetFile(pa.PythonFile(stream, mode="r"), **options) as file:
            groups = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            if min(groups, default=0) < 0 or sum(groups) != file.metadata.num_rows or sum(groups) > size:
                raise ValueError(f"{file.metadata.num_rows} rows in {size} bytes")
            yield file


def rows(file: pq.ParquetFile, columns: list[str], at_once: int, group: int | None = None) -> Iterator[dict[str, Any]]:
    """Yields the rows of the file or of one row group as dictionaries, decoding `at_once` rows per batch.

    `columns` are columns or fields of structs (`a.b`); the key of a field in the row is its column (`a`). Strings are
    returned as bytes, because invalid UTF-8 would raise. Raises one of DAMAGE, and StorageError.
    """
    groups = range(file.num_row_groups) if group is None else [group]
    for batch in file.iter_batches(at_once, row_groups=list(groups), columns=columns, use_threads=False):
        batch = pa.RecordBatch.from_arrays([_as_bytes(column) for column in batch.columns], batch.schema.names)
        batch.validate(full=True)  # offsets outside a buffer would crash the process
        yield from batch.to_pylist()


def _as_bytes(column: pa.Array) -> pa.Array:
    if pa.types.is_struct(column.type):
        return _as_bytes(column.flatten()[0])
    if pa.types.is_string(column.type):
        return column.view(pa.binary())
    return column.view(pa.large_binary()) if pa.types.is_large_string(column.type) else column


def is_string(schema: pa.Schema, name: str) -> bool:
    """Whether exactly one column has this name, and it has strings."""
    index = schema.get_field_index(name)  # -1 for a missing or repeated name
    return index >= 0 and (pa.types.is_string(schema.types[index]) or pa.types.is_large_string(schema.types[index]))


@contextmanager
def sound(address: str) -> Generator[None]:
    """Converts errors of DAMAGE to SourceError, for files that planning reads."""
    try:
        yield
    except DAMAGE as error:
        raise SourceError(f"{address}: damaged, or not Parquet: {one_line_cause(error)}") from error


def columns_there(schema: pa.Schema) -> str:
    """The columns of a file for an error message."""
    return one_line(", ".join(f"{field.name} ({field.type!s:.200})" for field in list(schema)[:20]))
