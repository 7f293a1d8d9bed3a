"""What a run has to do: its shards and their images, kept in the output as `_plan.parquet`."""

# pyarrow ships no types: strict checking would find every line that touches it unknown.
# pyright: standard
from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import StorageError
from pipeline.records import Shard
from pipeline.storage import Storage
from pipeline.table import read_parquet

PLAN_KEY = "_plan.parquet"

PLAN = pa.schema(
    [
        pa.field("shard", pa.int32(), nullable=False),  # 0, 1, 2...: a shard's rows are adjacent
        pa.field("uri", pa.string(), nullable=False),
        pa.field("image_id", pa.string()),  # null: one row for a shard whose images only reading it tells
    ]
)


@dataclass(frozen=True)
class Plan:
    """Shards, made from the rows of `_plan.parquet` as they are asked for: there may be millions of images."""

    rows: pa.Table

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        """(shards + 1,) the first row of each shard, and the end."""
        return np.flatnonzero(np.diff(self.rows["shard"].to_numpy(), prepend=-1, append=-1))

    def __len__(self) -> int:
        return max(0, len(self._starts) - 1)

    def __getitem__(self, position: int) -> Shard:
        start, end = self._starts[position], self._starts[position + 1]
        rows = self.rows.slice(start, end - start)
        image_ids = tuple(rows["image_id"].to_pylist())
        return Shard(rows["shard"][0].as_py(), rows["uri"][0].as_py(), None if image_ids == (None,) else image_ids)

    def __iter__(self) -> Iterator[Shard]:
        return (self[position] for position in range(len(self)))

    @property
    def n_images(self) -> int | None:
        """How many images there are; None where only reading the shards tells."""
        return None if self.rows["image_id"].null_count else len(self.rows)

    def without(self, shard_names: Collection[str]) -> Plan:
        """The shards that are not named."""
        indices = self.rows["shard"].to_numpy()[self._starts[:-1]]
        keep = [Shard(index, "").name not in shard_names for index in indices]
        return Plan(self.rows.filter(pa.array(np.repeat(keep, np.diff(self._starts)))))


def encode_plan(shards: Iterable[Shard]) -> bytes:
    """`_plan.parquet` as bytes."""
    batches: list[pa.RecordBatch] = []
    for shard in shards:
        image_ids = shard.image_ids or (None,)
        rows = [[shard.index] * len(image_ids), [shard.uri] * len(image_ids), image_ids]
        arrays = [pa.array(column, field.type) for column, field in zip(rows, PLAN, strict=True)]
        batches.append(pa.RecordBatch.from_arrays(arrays, schema=PLAN))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_batches(batches, PLAN), sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def read_plan(storage: Storage) -> Plan:
    """The plan of the run in `storage`. StorageError where there is none or it is damaged."""
    data = storage.read(PLAN_KEY)
    try:
        return Plan(read_parquet(data).select(PLAN.names).cast(PLAN))
    except (pa.ArrowException, KeyError) as error:
        raise StorageError(f"{storage.uri}/{PLAN_KEY}: damaged ({error}): start again in an empty output") from error
