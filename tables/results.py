"""Writes the rows of a query as a table of text, csv, json, jsonl or Parquet."""

# pyarrow ships no types: strict checking would find every line that touches it unknown.
# pyright: standard
from __future__ import annotations

import codecs
import csv
import json
import math
from collections.abc import Callable, Iterator
from datetime import date, time
from itertools import islice
from typing import Any, BinaryIO

import duckdb
import pyarrow.parquet as pq

from maskmill.tables.query import query_errors

ROWS_AT_ONCE = 65536
TABLE_ROWS = 100
LONGEST_CELL = 60  # characters

OnRows = Callable[[int], object]  # called with the number of rows that were written


def write(relation: duckdb.DuckDBPyRelation, format: str, stream: BinaryIO, on_rows: OnRows) -> None:
    """Writes all rows to a stream in one of FORMATS, some at a time. Text is UTF-8. Raises QueryError, OSError."""
    if format == "parquet":
        _write_parquet(relation, stream, on_rows)
        return
    # Not a TextIOWrapper, which would close the stream after an error.
    FORMATS[format](relation.columns, _rows(relation, on_rows), codecs.getwriter("utf-8")(stream))


def _batches(relation: duckdb.DuckDBPyRelation) -> Iterator[Any]:
    with query_errors():
        reader = relation.to_arrow_reader(ROWS_AT_ONCE)
        while True:
            try:
                batch = reader.read_next_batch()
            except StopIteration:
                return
            yield batch


def _rows(relation: duckdb.DuckDBPyRelation, on_rows: OnRows) -> Iterator[tuple[Any, ...]]:
    for batch in _batches(relation):
        columns = [[_plain(value) for value in column.to_pylist()] for column in batch.columns]
        yield from zip(*columns, strict=True)
        on_rows(batch.num_rows)


def _plain(value: Any) -> Any:
    """A value as JSON has it. Compressed RLEs are ASCII text; JSON has no number that is not finite."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case bytes():
            return value.decode("utf-8", "backslashreplace")
        case date() | time():
            return value.isoformat()
        case dict():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case _:
            return str(value)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _write_table(names: list[str], rows: Iterator[tuple[Any, ...]], text: codecs.StreamWriter) -> None:
    """The first rows with aligned columns, for people to read."""
    cells = [[_short(_cell(value)) for value in row] for row in islice(rows, TABLE_ROWS)]
    more = next(rows, None) is not None
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    for row in (names, ["-" * width for width in widths], *cells):
        text.write("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n")
    if more:
        text.write(f"... the first {TABLE_ROWS} rows; --format csv, json, jsonl or parquet has all\n")


def _short(cell: str) -> str:
    cell = " ".join(cell.split())
    return cell if len(cell) <= LONGEST_CELL else f"{cell[: LONGEST_CELL - 3]}..."


def _write_csv(names: list[str], rows: Iterator[tuple[Any, ...]], text: codecs.StreamWriter) -> None:
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(map(_cell, row) for row in rows)


def _write_jsonl(names: list[str], rows: Iterator[tuple[Any, ...]], text: codecs.StreamWriter) -> None:
    for row in rows:
        text.write(json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False) + "\n")


def _write_json(names: list[str], rows: Iterator[tuple[Any, ...]], text: codecs.StreamWriter) -> None:
    before = "[\n"
    for row in rows:
        text.write(before + json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False))
        before = ",\n"
    text.write("[]\n" if before == "[\n" else "\n]\n")


def _write_parquet(relation: duckdb.DuckDBPyRelation, stream: BinaryIO, on_rows: OnRows) -> None:
    with query_errors():
        schema = relation.limit(0).to_arrow_table().schema
    with pq.ParquetWriter(stream, schema, compression="zstd") as writer:
        for batch in _batches(relation):
            writer.write_batch(batch)
            on_rows(batch.num_rows)


FORMATS = {"table": _write_table, "csv": _write_csv, "json": _write_json, "jsonl": _write_jsonl, "parquet": None}
