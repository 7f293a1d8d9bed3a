"""Reads manifests: csv with a header, jsonl or Parquet, with a column `uri` and optionally `image_id`."""

# pyarrow has no type stubs; strict checking would report each use of it.
# pyright: standard
from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa

from maskmill.pipeline.errors import SourceError
from maskmill.pipeline.sources.names import is_parquet
from maskmill.pipeline.sources.parquet_file import columns_there, is_string, open_parquet, rows, sound
from maskmill.pipeline.storage import ReadableStorage

MAX_LINE = 2**20  # bytes
ROWS_AT_ONCE = 4096


class Line(NamedTuple):
    """One line of a manifest."""

    number: int  # from 1; in a Parquet file the row, from 0
    uri: str
    image_id: str  # "" if the manifest has none


def read_lines(storage: ReadableStorage, key: str) -> Iterator[Line]:
    """Yields the lines of a manifest. Raises SourceError with the line number if a line is invalid."""
    address = f"{storage.uri}/{key}"
    if is_parquet(key):
        yield from _parquet_lines(storage, key, address)
        return
    with storage.open(key) as stream:
        text = _text_lines(stream, address)
        yield from _csv_lines(text, address) if key.lower().endswith(".csv") else _json_lines(text, address)


def is_manifest(schema: pa.Schema) -> bool:
    """Whether a Parquet file is a manifest: it has a string column `uri`."""
    return is_string(schema, "uri")


def bad_line(address: str, number: int, what: str) -> SourceError:
    """The error for an invalid line of the manifest at `address`."""
    return SourceError(f"{address}: {'row' if is_parquet(address) else 'line'} {number}: {what}")


def _text_lines(stream: BinaryIO, address: str) -> Iterator[str]:
    number = 0
    while line := stream.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise bad_line(address, number, f"longer than {MAX_LINE} bytes")
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise bad_line(address, number, "not UTF-8") from error


def _csv_lines(text: Iterator[str], address: str) -> Iterator[Line]:
    reader = csv.reader(text, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        if header.count("uri") != 1 or header.count("image_id") > 1:
            raise bad_line(address, 1, "the header has no column uri, or has a column twice")
        for values in reader:
            if len(values) == len(header):
                fields = dict(zip(header, values, strict=True))
                yield _line(address, reader.line_num, fields["uri"], fields.get("image_id", ""))
            elif values:
                raise bad_line(address, reader.line_num, f"{len(values)} values, but the header has {len(header)}")
    except csv.Error as error:
        raise bad_line(address, reader.line_num, f"not csv: {error}") from error


def _json_lines(text: Iterator[str], address: str) -> Iterator[Line]:
    for number, line in enumerate(text, 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise bad_line(address, number, "not JSON") from error
        if not isinstance(fields, dict) or "uri" not in fields:
            raise bad_line(address, number, 'not an object with a "uri"')
        yield _line(address, number, fields["uri"], fields.get("image_id"))


def _parquet_lines(storage: ReadableStorage, key: str, address: str) -> Iterator[Line]:
    with sound(address), open_parquet(storage, key) as file:
        schema = file.schema_arrow
        columns = [name for name in ("uri", "image_id") if name in schema.names]
        if not is_manifest(schema) or not _fits(schema, "image_id"):
            raise SourceError(
                f"{address}: a manifest has a string column uri, and perhaps image_id of strings or integers: "
                f"there are {columns_there(schema)}"
            )
        for number, fields in enumerate(rows(file, columns, ROWS_AT_ONCE)):
            try:
                texts = {name: value.decode() if isinstance(value, bytes) else value for name, value in fields.items()}
            except UnicodeDecodeError as error:
                raise bad_line(address, number, "not UTF-8") from error
            yield _line(address, number, texts["uri"], texts.get("image_id"))


def _fits(schema: pa.Schema, name: str) -> bool:
    """Whether a column has strings or integers, or is missing."""
    index = schema.get_field_index(name)
    if index < 0:
        return name not in schema.names
    return is_string(schema, name) or pa.types.is_integer(schema.types[index])


def _line(address: str, number: int, uri: Any, image_id: Any) -> Line:
    if isinstance(image_id, int) and not isinstance(image_id, bool):
        image_id = str(image_id)
    if not isinstance(uri, str) or not uri:
        raise bad_line(address, number, "no uri")
    if not isinstance(image_id, str | None):
        raise bad_line(address, number, "the image_id is not text")
    try:
        (uri + (image_id or "")).encode()
    except UnicodeEncodeError as error:  # JSON can contain half of a surrogate pair
        raise bad_line(address, number, "the text is not valid Unicode") from error
    return Line(number, uri, image_id or "")
