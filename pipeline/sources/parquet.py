"""Images stored as bytes in Parquet files, as Hugging Face datasets and img2dataset write them."""

# pyarrow has no type stubs; strict checking would report each use of it.
# pyright: standard
from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from maskmill.pipeline.errors import ObjectError, SourceError, one_line_cause
from maskmill.pipeline.records import Failure, ImageRecord, Shard
from maskmill.pipeline.sources.names import (
    IMAGE_EXTENSIONS,
    MAX_ENCODED_BYTES,
    clean_path,
    is_image,
    is_parquet,
    is_tar,
    mixed,
    refuse_nested,
    too_large,
    unique,
)
from maskmill.pipeline.sources.parquet_file import (
    DAMAGE,
    columns_there,
    is_string,
    open_parquet,
    rows,
    sound,
)
from maskmill.pipeline.sources.selection import ALL_NAMES, LeftOut, NameFilter
from maskmill.pipeline.sources.source import PlannedSource
from maskmill.pipeline.storage import ReadableStorage

# Names of binary columns of images. A struct with a field `bytes` is recognised by its type.
BINARY_NAMES = ("image", "img", "image_bytes", "bytes", *(extension[1:] for extension in IMAGE_EXTENSIONS))
PATH_NAMES = ("path", "file_name", "__key__", "key")
PATHS_AT_ONCE = 4096

_Row = tuple[int, bytes | Failure]


@dataclass(frozen=True)
class Columns:
    """The columns of images in a Parquet file; `data` and `path` can name fields of a struct (`image.bytes`)."""

    image: str
    data: str
    path: str | None


def image_columns(schema: pa.Schema) -> Columns | None:
    """Finds the columns of images and of their paths. Returns None if no column has images.

    A column has images if it is a struct with a binary field `bytes`, or is binary with one of BINARY_NAMES. The column
    `image` comes first, then the order in the file. Paths are the field `path` of the struct, or else the first column
    of PATH_NAMES; both must be strings.
    """
    fitting = [name for name in schema.names if schema.get_field_index(name) >= 0 and _holds_images(schema.field(name))]
    if not fitting:
        return None
    name = "image" if "image" in fitting else fitting[0]
    path = next((column for column in PATH_NAMES if is_string(schema, column)), None)
    kind = schema.field(name).type
    if not pa.types.is_struct(kind):
        return Columns(name, name, path)
    return Columns(name, f"{name}.bytes", f"{name}.path" if is_string(pa.schema(list(kind)), "path") else path)


def _holds_images(field: pa.Field) -> bool:
    if not pa.types.is_struct(field.type):
        return field.name.lower() in BINARY_NAMES and _is_binary(field.type)
    index = field.type.get_field_index("bytes")
    return index >= 0 and _is_binary(field.type[index].type)


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


@dataclass(frozen=True)
class ParquetImages:
    """The images in Parquet files. A shard is rows of one file: several row groups, or a part of a large one.

    image_id is the path of the file relative to the source, a slash, and the path in the row, cleaned by `clean_path`,
    or else the row number from 0. Repeated ids get `#2`, `#3`... Ids are unique in a run because no file of a source is
    below another. The address of an image is the address of the file, `#` and the row number.

    Planning reads the footers and paths. It raises SourceError if a file is damaged or has no images, because the
    number of missing images would be unknown. Reading gives a Failure for each row that is in a damaged page, has no
    bytes, or is in a file that has changed. Memory depends on the page size of the file: pages are decoded whole.
    """

    storage: ReadableStorage
    uri: str
    only: tuple[str, ...] | None = None
    names: NameFilter = ALL_NAMES

    @property
    def planned(self) -> PlannedSource:
        return PlannedSource("parquet", self.uri, self.storage.uri, self.names)

    def plan(self, images_per_shard: int) -> Iterator[Shard]:
        indices = itertools.count()
        left_out = LeftOut(self.names)
        for key in self.only or self._keys(left_out):
            address = f"{self.storage.uri}/{key}"
            with sound(address), open_parquet(self.storage, key) as file:
                columns = image_columns(file.schema_arrow)
                if columns is None:
                    raise SourceError(
                        f"{address}: no column has images: the columns are {columns_there(file.schema_arrow)}"
                    )
                paths = enumerate(_paths(key, file, columns))
                seen: dict[str, int] = {}
                for size in _shard_sizes(_group_sizes(file), images_per_shard):
                    some = list(itertools.islice(paths, size))
                    if len(some) < size:
                        raise SourceError(f"{address}: damaged: fewer paths than rows")
                    kept = [(row, path) for row, path in some if not left_out.skips_image(path)]
                    if uris := {unique(path, seen): f"{address}#{row}" for row, path in kept}:
                        yield Shard(next(indices), address, tuple(uris), uris=uris)
        left_out.warn(self.uri)

    def _keys(self, left_out: LeftOut) -> Iterator[str]:
        for item in self.storage.list(skip=left_out.skips):
            if is_image(item.key) or is_tar(item.key):
                raise mixed(self.uri, "tars" if is_tar(item.key) else "images", "Parquet files", ".parquet")
            if is_parquet(item.key):
                refuse_nested(self.storage, item.key, is_parquet)
                yield item.key

    def read(self, shard: Shard, left_out: Counter[str] | None = None) -> Iterator[ImageRecord]:
        key = shard.uri.removeprefix(f"{self.storage.uri}/")
        image_ids = {int(shard.uris[image_id].rpartition("#")[2]): image_id for image_id in shard.image_ids or ()}
        wanted = sorted(image_ids)
        for row, data in _or_failures(wanted, _read(self.storage, key, wanted)):
            yield ImageRecord(image_ids[row], f"{shard.uri}#{row}", data)


def _group_sizes(file: pq.ParquetFile) -> list[int]:
    return [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]


def _paths(key: str, file: pq.ParquetFile, columns: Columns) -> Iterator[str]:
    """Yields for each row the path of the file joined with that of the image. Paths can repeat."""
    if columns.path is None:
        yield from (f"{key}/{row}" for row in range(file.metadata.num_rows))
        return
    for row, values in enumerate(rows(file, [columns.path], PATHS_AT_ONCE)):
        (path,) = values.values()
        name = clean_path(os.fsdecode(path)) if path else ""
        yield f"{key}/{name or row}"


def _shard_sizes(groups: Iterable[int], images_per_shard: int) -> Iterator[int]:
    """Yields the number of rows of each shard: small row groups are joined, large ones are cut into equal pieces.

    A piece has at least `images_per_shard` rows, so a group of less than twice that number is not cut.
    """
    joined = 0
    for size in groups:
        if joined and joined + size > images_per_shard:
            yield joined
            joined = 0
        if size <= images_per_shard:
            joined += size
        else:
            pieces = size // images_per_shard
            cuts = [size * piece // pieces for piece in range(pieces + 1)]
            yield from (end - start for start, end in itertools.pairwise(cuts))
    if joined:
        yield joined


def _or_failures(wanted: list[int], values: Iterator[_Row]) -> Iterator[_Row]:
    """Yields the rows that can be read, then a Failure for each wanted row after an error or the end of the file."""
    done, reason = 0, "the file has changed since the run was planned: this row is missing"
    try:
        for row in values:
            yield row
            done += 1
    except ObjectError as error:
        reason = str(error)
    except DAMAGE as error:
        reason = f"the file cannot be read further: {one_line_cause(error)}"
    for row in wanted[done:]:
        yield row, Failure("fetch", reason)


def _read(storage: ReadableStorage, key: str, wanted: list[int]) -> Iterator[_Row]:
    with open_parquet(storage, key) as file:
        columns = image_columns(file.schema_arrow)
        if columns is None:
            raise ValueError("it has changed since the run was planned: no column has images")
        end = 0
        for group, size in enumerate(_group_sizes(file)):
            start, end = end, end + size
            within = [row for row in wanted if start <= row < end]
            if within:  # damage in one group does not affect the next
                yield from _or_failures(within, _read_group(file, columns, group, start, within))


def _read_group(file: pq.ParquetFile, columns: Columns, group: int, start: int, wanted: list[int]) -> Iterator[_Row]:
    left = set(wanted)
    # One row at a time: the size of a row is unknown until it is decoded.
    for row, values in enumerate(rows(file, [columns.data], at_once=1, group=group), start):
        if row in left:
            left.remove(row)
            yield row, _encoded(values[columns.image])
        if not left:
            return


def _encoded(data: bytes | None) -> bytes | Failure:
    if not data:
        return Failure("fetch", "the row has no bytes")
    return too_large(len(data)) if len(data) > MAX_ENCODED_BYTES else data
