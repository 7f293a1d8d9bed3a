"""A run read back from its output, finished or not: its parts, its images, the masks of one image.

The rows of the images table are read from the footers of the masks parts, which are true at every instant: the images
parts may come a moment later.
"""

# pyarrow ships no types: strict checking would find every line that touches it unknown.
# pyright: standard
from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from maskmill.filters import rle
from maskmill.filters.names import FILTERS
from maskmill.pipeline.errors import ObjectError, UnknownImageError, one_line_cause
from maskmill.pipeline.ledger import REQUESTS_AT_ONCE, masks_key, parts_of, read_run
from maskmill.pipeline.plan import Plan, read_plan
from maskmill.pipeline.records import ImageMasks, Status
from maskmill.pipeline.sources.parquet_file import open_parquet
from maskmill.pipeline.storage import Storage
from maskmill.pipeline.storage.arrow import arrow_file_system
from maskmill.pipeline.table import IMAGES, MASKS, mask_columns, read_images


@dataclass(frozen=True, eq=False)
class RunImage(ImageMasks):
    """One image of a run with its masks; an image that failed has none, and no size (0 x 0 pixels)."""

    image_id: str
    source_uri: str  # where the run read the image
    sha256: str | None  # of the image file; None where it could not be read
    status: Status
    error: str | None  # why it failed; None where `status` is ok


@dataclass(frozen=True, eq=False)
class Run(Mapping[str, RunImage]):
    """A run by image id: `run[image_id]`, `len(run)`, `for image_id in run`. Made by `open_finished_run`; picklable.

    Everything is read when it is asked for, so a run that is still going shows what is done by then. All methods raise
    ObjectError where a part is damaged, StorageError where the store cannot be reached.
    """

    storage: Storage
    settings: Mapping[str, Any]  # what decided the masks: the content of `_run.json`
    plan: Plan

    @property
    def images(self) -> ds.Dataset:
        """The images table as a pyarrow data set: one row per image."""
        return self._dataset("images", IMAGES)

    @property
    def masks(self) -> ds.Dataset:
        """The masks table as a pyarrow data set: one row per mask."""
        return self._dataset("masks", MASKS)

    def __len__(self) -> int:
        return sum(len(rows) for rows in self.image_rows_by_shard())

    def __iter__(self) -> Iterator[str]:
        for rows in self.image_rows_by_shard():
            yield from rows["image_id"].to_pylist()

    def __getitem__(self, image_id: str, /) -> RunImage:
        """One image with its masks. UnknownImageError where the run has no such image, or it is not done yet."""
        for shard_name in self.plan.shards_with(image_id):
            if rows := self.image_rows(shard_name).filter(pc.field("image_id") == image_id).to_pylist():
                return self._image(rows[0])
        raise UnknownImageError(f"{self.storage.uri}: no image {image_id!r} in this run, or it is not done yet")

    def image_rows_by_shard(self) -> Iterator[pa.Table]:
        """`image_rows` of each shard of the plan that is done, in order."""
        names = (shard.name for shard in self.plan)
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as threads:
            while some := list(itertools.islice(names, 4 * REQUESTS_AT_ONCE)):
                yield from filter(len, threads.map(self.image_rows, some))

    def image_rows(self, shard_name: str) -> pa.Table:
        """The rows of the images table of one shard, one per image. `shard` is the part that holds the image's masks.

        No rows where the shard is not done.
        """
        tables = [self._footer(part) for part in parts_of(self.storage, shard_name)]
        # The images that failed in a part have their rows in its retry.
        tables[:-1] = [rows.filter(pc.field("status") == "ok") for rows in tables[:-1]]
        return pa.concat_tables([IMAGES.empty_table(), *tables])

    def mask_rows(self, part: str, image_id: str) -> pa.Table:
        """The rows of the masks table of one image, which are in this part. Reads the row groups that hold them."""
        key, groups = masks_key(part), []
        with self._explained(key), open_parquet(self.storage, key) as file:
            for group in range(file.num_row_groups):
                bounds = file.metadata.row_group(group).column(0).statistics  # of image_id, the first column
                if bounds is None or not bounds.has_min_max or bounds.min <= image_id <= bounds.max:
                    groups.append(group)
            return file.read_row_groups(groups, use_threads=False).filter(pc.field("image_id") == image_id)

    def _footer(self, part: str) -> pa.Table:
        key = masks_key(part)
        with self._explained(key), self.storage.open(key) as stream:
            return read_images(stream)

    def _image(self, row: Mapping[str, Any]) -> RunImage:
        image_id, height, width = row["image_id"], row["image_height"] or 0, row["image_width"] or 0
        columns = mask_columns(self.mask_rows(row["shard"], image_id))
        sizes = (np.full(len(columns["rle_counts"]), side) for side in (height, width))
        _, _, faults = rle.measure(columns["rle_counts"], *sizes)
        for mask_id, fault in faults.items():
            raise ObjectError(f"{self.storage.uri}: {image_id}, mask {mask_id}: the RLE {fault}")
        return RunImage(
            height=height,
            width=width,
            **columns,
            dropped={name: row[f"dropped_{name}"] or 0 for name in FILTERS},
            image_id=image_id,
            source_uri=row["source_uri"],
            sha256=row["sha256"],
            status=row["status"],
            error=row["error"],
        )

    def _dataset(self, table: str, schema: pa.Schema) -> ds.Dataset:
        keys = [item.key for item in self.storage.list(f"{table}/part-")]
        files = arrow_file_system(self.storage)
        return ds.FileSystemDataset.from_paths(keys, schema=schema, format=ds.ParquetFileFormat(), filesystem=files)

    @contextmanager
    def _explained(self, key: str) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            raise ObjectError(f"{self.storage.uri}/{key}: damaged: {one_line_cause(error)}") from error


def open_finished_run(storage: Storage) -> Run:
    """The run in `storage`. RunMismatchError where there is none, StorageError where the store cannot be reached."""
    return Run(storage, read_run(storage), read_plan(storage))
