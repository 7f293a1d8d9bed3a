"""Images as bytes in the rows of Parquet files, as Hugging Face datasets and img2dataset have them."""

# pyarrow ships no types: strict checking would find every line that touches it unknown.
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

# Binary columns whose names say that they hold images. A struct that has `bytes` says it by its type.
BINARY_NAMES = ("image", "img", "image_bytes", "bytes", *(extension[1:] for extension in IMAGE_EXTENSIONS))
PATH_NAMES = ("path", "file_name", "__key__", "key")
PATHS_AT_ONCE = 4096

_Row = tuple[int, bytes | Failure]


@dataclass(frozen=True)
class Columns:
    """Where a Parquet file has its images: names of columns, or of leaves of columns, as pyarrow takes them."""

    image: str
    data: str
    path: str | None


def image_columns(schema: pa.Schema) -> Columns | None:
    """The columns that hold images and their paths; None where no column looks like images.

    Images are in the column `image` if that is a struct with binary `bytes` or is itself binary, else in the first
    column that is such a struct or is binary and has one of BINARY_NAMES. Paths are the struct's `path`, else the first
    of PATH_NAMES that is a column; only strings count.
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
    """The images in Parquet files. A shard is rows of one file: some row groups, or a piece of a large one.

    image_id is the file's path relative to the source, a slash, and the row's path, cleaned as names in tars are, with
    `#2`, `#3`... where it came before in the file; or the row's number, from 0, where it has no path. So ids are unique
    in a file, and in a run because no file of a source lies below another. The address of an image is that of the file,
    `#`, and the row's number.

    Planning reads the footers and the paths, and raises SourceError where a file is damaged or has no images: nobody
    could tell how many are missing. In reading, images in damaged pages are Failures, as are rows without bytes and
    those of a file that has changed. A page is decoded whole: the writer of a file decides how much memory that takes.
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
                        f"{address}: no column holds images: there are {columns_there(file.schema_arrow)}"
                    )
                paths = enumerate(_paths(key, file, columns))
                seen: dict[str, int] = {}
                for size in _shard_sizes(_group_sizes(file), images_per_shard):
                    some = list(itertools.islice(paths, size))
                    if len(some) < size:
                        raise SourceError(f"{address}: damaged: it has fewer paths than rows")
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
    """Of each row the path of the file and, below it, that of the image: perhaps the same for several rows."""
    if columns.path is None:
        yield from (f"{key}/{row}" for row in range(file.metadata.num_rows))
        return
    for row, values in enumerate(rows(file, [columns.path], PATHS_AT_ONCE)):
        (path,) = values.values()
        name = clean_path(os.fsdecode(path)) if path else ""
        yield f"{key}/{name or row}"


def _shard_sizes(groups: Iterable[int], images_per_shard: int) -> Iterator[int]:
    """How many rows each shard has: row groups are joined while they fit, larger ones are cut into equal pieces.

    No piece has fewer than `images_per_shard` rows: a group that holds less than twice as many stays whole.
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
    """What reading the wanted rows gives, and Failures for those that it did not come to."""
    done, reason = 0, "the file has changed since the run was planned: it has no such row"
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
            raise ValueError("it has changed since the run was planned: no column holds images")
        end = 0
        for group, size in enumerate(_group_sizes(file)):
            start, end = end, end + size
            within = [row for row in wanted if start <= row < end]
            if within:  # what is damaged in one group leaves the next as it is
                yield from _or_failures(within, _read_group(file, columns, group, start, within))


def _read_group(file: pq.ParquetFile, columns: Columns, group: int, start: int, wanted: list[int]) -> Iterator[_Row]:
    left = set(wanted)
    # One at a time: how large they are is only known when they are there.
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
