"""A run read from its output, finished or in progress: its images, the masks of an image, what failed, its totals.

The rows of the images table come from the footers of the masks parts, which are complete from the moment of the commit.
The images parts are written shortly after it.
"""

# pyarrow ships no types: strict checking would find every line that touches it unknown.
# pyright: standard
from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from maskmill.filters import rle
from maskmill.filters.names import FILTERS
from maskmill.pipeline.config import DecodingConfig
from maskmill.pipeline.errors import ObjectError, UnknownImageError, one_line_cause
from maskmill.pipeline.ledger import REQUESTS_AT_ONCE, read_run
from maskmill.pipeline.parts import list_parts, masks_key, part_at, parts_of, retry_of, shard_of
from maskmill.pipeline.plan import Plan, read_plan
from maskmill.pipeline.records import ImageMasks, Shard, Status
from maskmill.pipeline.sources.parquet_file import open_parquet
from maskmill.pipeline.storage import Storage
from maskmill.pipeline.storage.arrow import arrow_file_system
from maskmill.pipeline.table import IMAGES, MASKS, mask_columns, read_footer, read_parquet


@dataclass(frozen=True, eq=False)
class RunImage(ImageMasks):
    """One image of a run with its masks. An image that failed has no masks and a size of 0 x 0 pixels."""

    image_id: str
    source_uri: str  # where the run read the image
    sha256: str | None  # of the image file; None if it could not be read
    status: Status
    error: str | None  # why the image failed; None if `status` is ok


@dataclass(frozen=True)
class Totals:
    """What a run has produced so far."""

    images: int
    failed: int  # of the images: failed or quarantined
    masks: int
    left_out: Mapping[str, int]  # reason -> images in tars that are not part of the run


@dataclass(frozen=True, eq=False)
class DoneShard:
    """The result of a shard and of its retries."""

    shard: Shard  # as planned
    last_retry: int  # the number of its last retry; 0 if there is none
    images: pa.Table  # rows of the images table, one per image; column `shard`: the part with the image's masks
    left_out: Mapping[str, int]  # reason -> images in a tar that are not part of the run

    def retry(self) -> Shard | None:
        """The next retry of the shard: its failed and quarantined images. None if there are none."""
        ok = pc.field("status") == "ok"
        failed = frozenset(self.images.filter(~ok)["image_id"].to_pylist())
        if not failed:
            return None
        shard = replace(self.shard, retry=self.last_retry + 1)
        if shard.image_ids is not None:
            return replace(shard, image_ids=tuple(image_id for image_id in shard.image_ids if image_id in failed))
        # A truncated tar may hold more images than the failed ones that are known.
        done = frozenset(self.images.filter(ok)["image_id"].to_pylist())
        return replace(shard, skip=done, again=failed)


@dataclass(frozen=True, eq=False)
class Run(Mapping[str, RunImage]):
    """A run by image id: `run[image_id]`, `len(run)`, `for image_id in run`. Made by `open_finished_run`; picklable.

    Each call reads the output anew, so a run in progress shows the images that are done at that moment. All methods
    raise ObjectError if a part is damaged and StorageError if the store cannot be reached.
    """

    storage: Storage
    settings: Mapping[str, Any]  # the content of `_run.json`: all settings that decide the masks
    plan: Plan

    @property
    def decoding(self) -> DecodingConfig:
        """How the run decodes image files."""
        return DecodingConfig.from_json(self.settings["config"].get("decoding", {}))

    @property
    def images(self) -> ds.Dataset:
        """The images table as a pyarrow data set: one row per image."""
        return self._dataset("images", IMAGES)

    @property
    def masks(self) -> ds.Dataset:
        """The masks table as a pyarrow data set: one row per mask."""
        return self._dataset("masks", MASKS)

    def __len__(self) -> int:
        return sum(len(done.images) for done in self.done_shards())

    def __iter__(self) -> Iterator[str]:
        for done in self.done_shards():
            yield from done.images["image_id"].to_pylist()

    def __getitem__(self, image_id: str, /) -> RunImage:
        """One image with its masks. UnknownImageError if the run has no such image or has not processed it yet."""
        for shard_name in self.plan.shards_with(image_id):
            images, _ = self._read_footers(parts_of(self.storage, shard_name))
            if rows := images.filter(pc.field("image_id") == image_id).to_pylist():
                return self._image(rows[0])
        raise UnknownImageError(f"{self.storage.uri}: no image {image_id!r} in this run, or it is not done yet")

    def done_shards(self) -> Iterator[DoneShard]:
        """The shards that have a part, in the order of the plan. Reads the footers of the masks parts, some ahead."""
        parts: defaultdict[str, list[str]] = defaultdict(list)
        for part in list_parts(self.storage, "masks"):
            parts[shard_of(part)].append(part)

        def read(shard: Shard) -> DoneShard:
            in_order = sorted(parts[shard.name], key=retry_of)
            return DoneShard(shard, retry_of(in_order[-1]), *self._read_footers(in_order))

        done = (shard for shard in self.plan if shard.name in parts)
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as threads:
            while some := list(itertools.islice(done, 4 * REQUESTS_AT_ONCE)):
                yield from threads.map(read, some)

    def totals(self) -> Totals:
        """Counts the images and masks that are done."""
        images = failed = masks = 0
        left_out: Counter[str] = Counter()
        for done in self.done_shards():
            images += len(done.images)
            failed += len(done.images.filter(pc.field("status") != "ok"))
            masks += sum(done.images["n_masks"].to_pylist())
            left_out.update(done.left_out)
        return Totals(images, failed, masks, left_out)

    def retries(self) -> list[Shard]:
        """The shards with failed or quarantined images, each as its next retry: with these images only."""
        return [retry for done in self.done_shards() if (retry := done.retry())]

    def check_rles(self, image_id: str, rle_counts: Sequence[bytes], height: int, width: int) -> None:
        """Raises ObjectError if one of the RLEs of an image is not a mask of `height` x `width` pixels."""
        sizes = (np.full(len(rle_counts), side) for side in (height, width))
        _, _, faults = rle.measure(rle_counts, *sizes)
        for mask_id, fault in faults.items():
            raise ObjectError(f"{self.storage.uri}: {image_id}, mask {mask_id}: the RLE {fault}")

    def rle_reader(self) -> Callable[[str, str], list[bytes]]:
        """A function (part, image_id) -> RLEs of the image, for readers that go through a run part by part.

        It reads parts whole and keeps the last one. `mask_rows` reads less when one image of a part is needed.
        """

        @lru_cache(maxsize=1)
        def read(part: str) -> pa.Table:
            key = masks_key(part)
            with self._damage_named(key):
                return read_parquet(self.storage.read(key), ["image_id", "rle_counts"])

        return lambda part, image_id: read(part).filter(pc.field("image_id") == image_id)["rle_counts"].to_pylist()

    def mask_rows(self, part: str, image_id: str) -> pa.Table:
        """The masks of one image of this part: rows of the masks table. Reads only the row groups that hold them."""
        key, groups = masks_key(part), []
        with self._damage_named(key), open_parquet(self.storage, key) as file:
            for group in range(file.num_row_groups):
                bounds = file.metadata.row_group(group).column(0).statistics  # of image_id, the first column
                if bounds is None or not bounds.has_min_max or bounds.min <= image_id <= bounds.max:
                    groups.append(group)
            return file.read_row_groups(groups, use_threads=False).filter(pc.field("image_id") == image_id)

    def _read_footers(self, parts: Sequence[str]) -> tuple[pa.Table, Counter[str]]:
        """The images and `left_out` of a shard, from its parts in order. No images if it has no part."""
        images, left_out = [IMAGES.empty_table()], Counter[str]()
        for part in parts:
            key = masks_key(part)
            with self._damage_named(key), self.storage.open(key) as stream:
                footer = read_footer(stream)
            # A retry has new rows for the images that failed before, and counts again what a tar leaves out.
            images = [*(rows.filter(pc.field("status") == "ok") for rows in images), footer.images]
            left_out = footer.left_out
        return pa.concat_tables(images), left_out

    def _image(self, row: Mapping[str, Any]) -> RunImage:
        image_id, height, width = row["image_id"], row["image_height"] or 0, row["image_width"] or 0
        columns = mask_columns(self.mask_rows(row["shard"], image_id))
        self.check_rles(image_id, columns["rle_counts"], height, width)
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
        keys = [item.key for item in self.storage.list(f"{table}/part-") if part_at(item.key)]
        files = arrow_file_system(self.storage)
        return ds.FileSystemDataset.from_paths(keys, schema=schema, format=ds.ParquetFileFormat(), filesystem=files)

    @contextmanager
    def _damage_named(self, key: str) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            raise ObjectError(f"{self.storage.uri}/{key}: damaged: {one_line_cause(error)}") from error


def open_finished_run(storage: Storage, moved_to: str | None = None) -> Run:
    """The run in `storage`. Its images are where it read them, or at `moved_to`.

    Raises RunMismatchError if there is no run, StorageError if the store cannot be reached, and ConfigError if
    `moved_to` names another file or pattern than the run was made of.
    """
    return Run(storage, read_run(storage), read_plan(storage).at(moved_to))
