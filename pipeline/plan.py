"""The plan of a run: its shards and their images, stored in the output as `_plan.parquet`.

A plan of ten million images takes tens of megabytes as Parquet and gigabytes as Python objects. So memory holds the
Parquet bytes, and the plan is written and read one row group at a time.
"""

# pyarrow ships no types: strict checking would find every line that touches it unknown.
# pyright: standard
from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from maskmill.pipeline.errors import StorageError
from maskmill.pipeline.records import Shard
from maskmill.pipeline.sources import KINDS, PlannedSource, Source, moved
from maskmill.pipeline.storage import Storage

PLAN_KEY = "_plan.parquet"
ROWS_PER_GROUP = 65536
SOURCE_KEY = "maskmill.source"  # key of the footer metadata; the value is PlannedSource as JSON
# Shards have MAX_IMAGES_PER_SHARD images, or fewer to get at least MIN_SHARDS: small sources too need enough shards for
# all workers.
MAX_IMAGES_PER_SHARD = 64
MIN_SHARDS = 32

PLAN = pa.schema(
    [
        pa.field("shard", pa.int32(), nullable=False),  # 0, 1, 2...: the rows of a shard are adjacent, in one row group
        pa.field("uri", pa.string(), nullable=False),
        pa.field("image_id", pa.string()),  # null: the shard has one row, and its images are known after reading it
        pa.field("image_uri", pa.string()),  # Shard.uris; null if the source does not need it
    ]
)


@dataclass(frozen=True, eq=False)
class Plan:
    """A sequence of shards and their source. Each iteration decodes the shards from the bytes of `_plan.parquet`."""

    data: bytes
    sizes: NDArray[np.int32]  # (shards,) images per shard; -1 if not known before the shard is read
    groups: NDArray[np.int64]  # (row groups + 1,) the first shard of each row group, and the number of shards
    left_out: NDArray[np.bool_]  # (shards,) see `without`
    source: PlannedSource  # where the images are now
    planned_root: str  # PlannedSource.root when the plan was made

    def __len__(self) -> int:
        return int(np.count_nonzero(~self.left_out))

    def __getitem__(self, position: int) -> Shard:
        return next(itertools.islice(self, position, None))

    def __iter__(self) -> Iterator[Shard]:
        return self.shards_from(0)

    def shards_from(self, index: int, step: Literal[1, -1] = 1, text: str = "") -> Iterator[Shard]:
        """The shards from number `index` on; with a step of -1 backwards. Decodes only the row groups it reaches.

        With `text`, only shards with an image id that contains it, in upper or lower case, and shards without a list of
        their images.
        """
        file = _open(self.data)
        last_group = len(self.groups) - 2
        group = int(np.searchsorted(self.groups, index, side="right")) - 1
        while 0 <= group <= last_group:
            first = self.groups[group]
            wanted = ~self.left_out[first : self.groups[group + 1]]
            if wanted.any():
                rows = _read_group(file, group)
                starts = _starts(rows)
                if text:
                    wanted &= np.logical_or.reduceat(_contains(rows["image_id"], text), starts[:-1])
                for shard in np.flatnonzero(wanted)[::step]:
                    if (first + shard - index) * step >= 0:
                        yield self._relocated(_shard(rows.slice(starts[shard], starts[shard + 1] - starts[shard])))
            group += step

    @property
    def n_images(self) -> int | None:
        """The number of images; None if it is not known before the shards are read."""
        sizes = self.sizes[~self.left_out]
        return None if (sizes < 0).any() else int(sizes.sum())

    def shard(self, index: int) -> Shard:
        """The shard with this number. Decodes one row group."""
        group = int(np.searchsorted(self.groups, index, "right")) - 1
        rows = _read_group(_open(self.data), group)
        return self._relocated(_shard(rows.filter(pc.field("shard") == index)))

    def shards_with(self, image_id: str) -> list[Shard]:
        """The shards that may hold an image: the one that lists it, and tars with a path that fits its id."""
        parts = image_id.split("/")
        holds = pc.field("image_id") == image_id
        for length in range(1, len(parts) + 1):
            tar = f"/{'/'.join(parts[:length])}"
            holds |= pc.field("image_id").is_null() & pc.ends_with(pc.field("uri"), tar)  # pyright: ignore[reportAttributeAccessIssue]
        rows = pq.read_table(pa.BufferReader(self.data), columns=["shard"], filters=holds, use_threads=False)
        return [self.shard(index) for index in rows["shard"].unique().to_pylist()]

    @cached_property
    def id_ranges(self) -> tuple[tuple[str, str], ...]:
        """For each shard the range of its image ids: from the first string, up to but not including the second."""
        file = _open(self.data)
        groups = (_read_group(file, group) for group in range(file.num_row_groups))
        return tuple(itertools.chain.from_iterable(map(self._id_ranges, groups)))

    def _id_ranges(self, rows: pa.Table) -> Iterator[tuple[str, str]]:
        rows = rows.sort_by([("shard", "ascending"), ("image_id", "ascending")])
        starts = _starts(rows)
        uris, firsts = (rows[name].take(pa.array(starts[:-1])).to_pylist() for name in ("uri", "image_id"))
        lasts = rows["image_id"].take(pa.array(starts[1:] - 1)).to_pylist()
        for uri, first, last in zip(uris, firsts, lasts, strict=True):
            if first is None:  # ids in a tar start with its path and a slash; its path alone is the row of the tar
                tar = uri.removeprefix(f"{self.planned_root}/")
                yield tar, f"{tar}{chr(ord('/') + 1)}"
            else:
                yield first, f"{last}\0"  # the next string after `last`

    def without(self, shard_names: Collection[str]) -> Plan:
        """The plan without the named shards."""
        named = (Shard(index, "").name in shard_names for index in range(len(self.sizes)))
        return replace(self, left_out=self.left_out | np.fromiter(named, np.bool_, len(self.sizes)))

    def at(self, source: str | None) -> Plan:
        """The plan with its images at `source`, the new place of SOURCE; None: at the planned place.

        Addresses outside the folder of a manifest do not change. Raises as `moved` does.
        """
        return self if source is None else replace(self, source=moved(self.source, source))

    def _relocated(self, shard: Shard) -> Shard:
        old, new = self.planned_root, self.source.root
        if old == new:
            return shard

        def relocate(uri: str) -> str:
            return new + uri[len(old) :] if uri == old or uri.startswith(f"{old}/") else uri

        uris = {image_id: relocate(uri) for image_id, uri in shard.uris.items()}
        return replace(shard, uri=relocate(shard.uri), uris=uris)


def shard_size(source: Source) -> int:
    """The default number of images per shard."""
    enough = MAX_IMAGES_PER_SHARD * MIN_SHARDS
    count = sum(1 for _ in itertools.islice(source.plan(1), enough))
    return max(1, min(MAX_IMAGES_PER_SHARD, count // MIN_SHARDS))


def encode_plan(source: PlannedSource, shards: Iterable[Shard]) -> bytes:
    """The content of `_plan.parquet`: the source and its shards. Shards must be numbered 0, 1, 2..."""
    sink = pa.BufferOutputStream()
    options = {
        "compression": "zstd",
        "write_page_checksum": True,
        "use_dictionary": ["shard", "uri"],
        # Sorted paths share prefixes: this encoding halves the size at the same speed.
        "column_encoding": {"image_id": "DELTA_BYTE_ARRAY", "image_uri": "DELTA_BYTE_ARRAY"},
    }
    with pq.ParquetWriter(sink, PLAN, **options) as writer:
        rows: list[tuple[int, str, str | None, str | None]] = []
        for shard in shards:
            rows += ((shard.index, shard.uri, image_id, shard.uris.get(image_id)) for image_id in shard.image_ids or ())
            if not shard.image_ids:
                rows.append((shard.index, shard.uri, None, None))
            if len(rows) >= ROWS_PER_GROUP:
                writer.write_batch(_batch(rows), len(rows))
                rows.clear()
        if rows:
            writer.write_batch(_batch(rows), len(rows))
        writer.add_key_value_metadata({SOURCE_KEY: json.dumps(asdict(source))})
    return sink.getvalue().to_pybytes()


def _batch(rows: list[tuple[int, str, str | None, str | None]]) -> pa.RecordBatch:
    columns = zip(*rows, strict=True)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, PLAN, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=PLAN)


def read_plan(storage: Storage) -> Plan:
    """Reads and validates the plan of the run in `storage`. Raises StorageError if it is missing or damaged."""
    data = storage.read(PLAN_KEY)
    sizes = [np.empty(0, np.int32)]
    groups = [0]
    try:
        file = _open(data)
        source = PlannedSource.from_json((file.metadata.metadata or {})[SOURCE_KEY.encode()])
        if source.kind not in KINDS:
            raise ValueError(f"no kind of source is called {source.kind}")
        for group in range(file.num_row_groups):
            rows = _read_group(file, group)
            sizes.append(_sizes(rows, groups[-1]))
            groups.append(groups[-1] + len(sizes[-1]))
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{storage.uri}/{PLAN_KEY}: damaged ({error}): run again with an empty output") from error
    joined = np.concatenate(sizes)
    return Plan(data, joined, np.array(groups), np.zeros(len(joined), np.bool_), source, source.root)


def _open(data: bytes) -> pq.ParquetFile:
    return pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)


def _read_group(file: pq.ParquetFile, group: int) -> pa.Table:
    return file.read_row_group(group, use_threads=False).select(PLAN.names).cast(PLAN)


def _starts(rows: pa.Table) -> NDArray[np.int64]:
    """(shards + 1,) the first row of each shard, and the number of rows."""
    return np.flatnonzero(np.diff(rows["shard"].to_numpy(), prepend=-1, append=-1))


def _sizes(rows: pa.Table, first_shard: int) -> NDArray[np.int32]:
    """(shards,) `Plan.sizes` of a row group. ValueError if it does not hold whole shards, from `first_shard` on."""
    rows.validate(full=True)
    starts = _starts(rows)
    sizes = np.diff(starts).astype(np.int32)
    unlisted = rows["image_id"].is_null().to_numpy()
    if not np.array_equal(rows["shard"].to_numpy()[starts[:-1]], np.arange(first_shard, first_shard + len(sizes))):
        raise ValueError("its shards are not numbered in order")
    if (unlisted & ~np.repeat(sizes == 1, sizes)).any():
        raise ValueError("images without an id")
    return np.where(unlisted[starts[:-1]], -1, sizes).astype(np.int32)


def _shard(rows: pa.Table) -> Shard:
    """The shard of some rows of the plan."""
    index, uri = rows["shard"][0].as_py(), rows["uri"][0].as_py()
    image_ids, image_uris = rows["image_id"].to_pylist(), rows["image_uri"].to_pylist()
    listed = None if image_ids[0] is None else tuple(image_ids)
    return Shard(index, uri, listed, uris=dict(zip(image_ids, image_uris, strict=True)) if image_uris[0] else {})


def _contains(image_ids: pa.ChunkedArray, text: str) -> NDArray[np.bool_]:
    """(rows,) whether the id contains the text, in upper or lower case; True for a shard without a list."""
    found = pc.match_substring(image_ids, text, ignore_case=True)  # pyright: ignore[reportAttributeAccessIssue]
    return found.fill_null(True).to_numpy()
