"""A run read from its output, finished or in progress: its images, the masks of an image, what failed, its totals.

The rows of the images table come from the footers of the masks parts, which are complete from the moment of the commit.
The images parts are written shortly after it.
"""

# pyarrow ships no types: strict checking would find every line that touches it unknown.
# pyright: standard
from __future__ import annotations

import hashlib
import io
import itertools
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, ItemsView, Iterable, Iterator, Mapping, Sequence, ValuesView
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from numpy.typing import NDArray
from PIL import Image

from maskmill.filters import rle
from maskmill.filters.names import FILTERS
from maskmill.model.errors import MaskmillError
from maskmill.pipeline.config import DecodingConfig
from maskmill.pipeline.errors import ImageError, ObjectError, UnknownImageError, one_line_cause
from maskmill.pipeline.images import decode_image
from maskmill.pipeline.ledger import REQUESTS_AT_ONCE, read_run
from maskmill.pipeline.overlay import draw_masks
from maskmill.pipeline.parts import list_parts, masks_key, part_at, parts_of, retry_of, shard_of
from maskmill.pipeline.photographs import Photographs
from maskmill.pipeline.plan import Plan, read_plan
from maskmill.pipeline.pools import generator_threads
from maskmill.pipeline.records import ImageMasks, Shard, Status
from maskmill.pipeline.sources.parquet_file import open_parquet
from maskmill.pipeline.storage import Storage
from maskmill.pipeline.storage.arrow import arrow_file_system
from maskmill.pipeline.summary import read_summaries
from maskmill.pipeline.table import IMAGES, MASKS, Footer, mask_columns, read_footer, read_parquet

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, eq=False, repr=False)
class RunImage(ImageMasks):
    """One image of a run with its masks. An image that failed has no masks and a size of 0 x 0 pixels.

    Masks are decoded and the image file is read when they are first needed. A notebook draws the image with its masks.
    """

    image_id: str
    source_uri: str  # where the run read the image
    sha256: str | None  # of the image file; None if it could not be read
    status: Status
    error: str | None  # why the image failed; None if `status` is ok
    fetch: Callable[[], bytes]  # reads the image file; picklable
    decoding: DecodingConfig

    def __repr__(self) -> str:
        masks = f"{self.width} x {self.height} pixels, {len(self)} masks" if self.status == "ok" else self.status
        return f"<RunImage {self.image_id!r}: {masks}>"

    def read_pixels(self) -> NDArray[np.uint8]:
        """The image, upright RGB (H, W, 3).

        Raises ObjectError if the file is gone or is not the one that the run read, SourceError or StorageError if the
        source cannot be reached, and ImageError if the file cannot be decoded.
        """
        try:
            data = self.fetch()
            if self.sha256 not in (None, hashlib.sha256(data).hexdigest()):
                raise ObjectError("the file has changed since the run read it")
            return decode_image(data, self.decoding).pixels
        except (ObjectError, ImageError) as error:
            raise type(error)(f"{self.image_id}: {error}") from error

    def draw(self) -> NDArray[np.uint8]:
        """The image with its masks in colour, small masks on top, RGB (H, W, 3). Raises as `read_pixels` does."""
        return draw_masks(self.read_pixels(), (self.decode(row) for row in np.argsort(-self.area, kind="stable")))

    def show(self) -> Image.Image:
        """`draw` as a Pillow image. A notebook displays it. Raises as `read_pixels` does."""
        picture = Image.fromarray(self.draw())
        if (ipython := sys.modules.get("IPython")) and ipython.get_ipython():
            ipython.display.display(picture)
            # IPython would display the picture again where `show()` is the last line of a cell.
            picture._ipython_display_ = lambda: delattr(picture, "_ipython_display_")  # pyright: ignore[reportAttributeAccessIssue]
        return picture

    def _repr_png_(self) -> bytes | None:
        """For notebooks: the picture as PNG; None, so that they show the text, if the image file cannot be read."""
        try:
            pixels = self.draw()
        except MaskmillError:
            return None
        png = io.BytesIO()
        Image.fromarray(pixels).save(png, "PNG")
        return png.getvalue()


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


@dataclass(frozen=True, eq=False, repr=False)
class Run(Mapping[str, RunImage]):
    """A run by image id: `run[image_id]`, `len(run)`, `for image_id in run`. Made by `open_finished_run`; picklable.

    Each call reads the output anew, so a run in progress shows the images that are done at that moment. Memory holds
    the plan and one part at a time. All methods raise ObjectError if a part is damaged and StorageError if the store
    cannot be reached.
    """

    storage: Storage
    settings: Mapping[str, Any]  # the content of `_run.json`: all settings that decide the masks
    plan: Plan

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.storage.uri}>"

    @property
    def decoding(self) -> DecodingConfig:
        """How the run decodes image files."""
        return DecodingConfig.from_json(self.settings["config"].get("decoding", {}))

    @cached_property
    def photographs(self) -> Photographs:
        """The image files of the run."""
        return Photographs(self.plan.source)

    @property
    def images(self) -> ds.Dataset:
        """The images table as a pyarrow data set: one row per image."""
        return self._dataset("images", IMAGES)

    @property
    def masks(self) -> ds.Dataset:
        """The masks table as a pyarrow data set: one row per mask.

        A filter on image_id opens only the parts that can hold these images.
        """
        return self._dataset("masks", MASKS)

    def __len__(self) -> int:
        return sum(len(done.images) for done in self.done_shards())

    def __iter__(self) -> Iterator[str]:
        for done in self.done_shards():
            yield from done.images["image_id"].to_pylist()

    def values(self) -> ValuesView[RunImage]:
        """The images in the order of the plan. Reads each part once, where `run[image_id]` searches for each image."""
        return _Values(self)

    def items(self) -> ItemsView[str, RunImage]:
        """The ids and the images in the order of the plan. Reads each part once."""
        return _Items(self)

    def __getitem__(self, image_id: str, /) -> RunImage:
        """One image with its masks. UnknownImageError if the run has no such image or has not processed it yet."""
        for shard in self.plan.shards_with(image_id):
            for row in self.done_shard(shard).images.filter(pc.field("image_id") == image_id).to_pylist():
                return self.image(shard, row)
        raise UnknownImageError(f"{self.storage.uri}: no image {image_id!r} in this run, or it is not done yet")

    def image(self, shard: Shard, row: Mapping[str, Any]) -> RunImage:
        """An image of this shard with its masks, from its row of the images table."""
        return self._image(shard, row, self.mask_rows(row["shard"], row["image_id"]))

    def done_shard(self, shard: Shard) -> DoneShard:
        """The result of a shard so far. It has no images if the shard has no part."""
        parts = parts_of(self.storage, shard.name)
        return DoneShard(shard, max(map(retry_of, parts), default=0), *self._read_footers(parts))

    def done_shards(self) -> Iterator[DoneShard]:
        """The shards that have a part, in the order of the plan. Reads the footers of the masks parts, some ahead."""
        parts: defaultdict[str, list[str]] = defaultdict(list)
        for part in list_parts(self.storage, "masks"):
            parts[shard_of(part)].append(part)

        def read(shard: Shard) -> DoneShard:
            in_order = sorted(parts[shard.name], key=retry_of)
            return DoneShard(shard, retry_of(in_order[-1]), *self._read_footers(in_order))

        yield from _map_ahead(read, (shard for shard in self.plan if shard.name in parts))

    def footers(self, skip: Collection[str] = ()) -> Iterator[tuple[str, Footer]]:
        """The names of the committed parts, without those in `skip`, and their footers. Reads some footers ahead."""
        parts = [part for part in list_parts(self.storage, "masks") if part not in skip]
        yield from _map_ahead(lambda part: (part, self._read_footer(part)), parts)

    def images_in_order(self) -> Iterator[RunImage]:
        """All images with their masks, in the order of the plan. Reads each part once, a row group at a time."""
        for done in self.done_shards():
            for part in done.images["shard"].unique().to_pylist():
                masks = self.masks_by_image(part)
                for row in done.images.filter(pc.field("shard") == part).sort_by("image_id").to_pylist():
                    rows = next(masks, MASKS.empty_table()) if row["n_masks"] else MASKS.empty_table()
                    if rows["image_id"].to_pylist() != row["n_masks"] * [row["image_id"]]:
                        raise ObjectError(f"{self.storage.uri}/{masks_key(part)}: damaged: not the masks of its images")
                    yield self._image(done.shard, row, rows)

    def images_of(self, shard_names: Sequence[str]) -> list[pa.Table]:
        """The images of some shards: one table per shard, sorted by image_id; without rows if the shard is not done."""

        def read(shard_name: str) -> pa.Table:
            return self._read_footers(parts_of(self.storage, shard_name))[0].sort_by("image_id")

        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as threads:
            return list(threads.map(read, shard_names))

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

    def commit_times(self) -> dict[str, float]:
        """When each part was committed, in seconds since the epoch. A copy of an output has the times of the copy."""
        return {part: item.modified for item in self.storage.list("masks/part-") if (part := part_at(item.key))}

    def mask_parts(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """The given columns of the masks table, one part at a time. Some parts are read ahead."""

        def read(part: str) -> pa.Table:
            key = masks_key(part)
            with self._damage_named(key), open_parquet(self.storage, key) as file:
                return file.read(list(columns), use_threads=False)

        yield from _map_ahead(read, list_parts(self.storage, "masks"))

    def summaries(self) -> list[dict[str, Any]]:
        """The summaries of the drivers that ended, in order: the fields of `summary.Summary`."""
        return read_summaries(self.storage)

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

    def masks_by_image(self, part: str) -> Iterator[pa.Table]:
        """The rows of the masks table of each image in a part that has masks, in the order of the part."""
        key, rest = masks_key(part), MASKS.empty_table()
        with self._damage_named(key), open_parquet(self.storage, key) as file:
            for group in range(file.num_row_groups):
                rows = pa.concat_tables([rest, file.read_row_group(group, use_threads=False)])
                ids = rows["image_id"].combine_chunks()
                starts = [0, *(np.flatnonzero(pc.call_function("not_equal", [ids[1:], ids[:-1]])) + 1).tolist()]
                for start, end in itertools.pairwise(starts):
                    yield rows.slice(start, end - start)
                rest = rows.slice(starts[-1])  # the next group may have more masks of this image
        if len(rest):
            yield rest

    def _read_footers(self, parts: Sequence[str]) -> tuple[pa.Table, Counter[str]]:
        """The images and `left_out` of a shard, from its parts in order. No images if it has no part."""
        images, left_out = [IMAGES.empty_table()], Counter[str]()
        for part in parts:
            footer = self._read_footer(part)
            # A retry has new rows for the images that failed before, and counts again what a tar leaves out.
            images = [*(rows.filter(pc.field("status") == "ok") for rows in images), footer.images]
            left_out = footer.left_out
        return pa.concat_tables(images), left_out

    def _read_footer(self, part: str) -> Footer:
        key = masks_key(part)
        with self._damage_named(key), self.storage.open(key) as stream:
            return read_footer(stream)

    def _image(self, shard: Shard, row: Mapping[str, Any], masks: pa.Table) -> RunImage:
        image_id, height, width = row["image_id"], row["image_height"] or 0, row["image_width"] or 0
        columns = mask_columns(masks)
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
            fetch=partial(self.photographs.fetch, image_id, shard.only(image_id)),
            decoding=self.decoding,
        )

    def _dataset(self, table: str, schema: pa.Schema) -> ds.Dataset:
        files, parquet, image_id = arrow_file_system(self.storage), ds.ParquetFileFormat(), pc.field("image_id")
        parts = []
        for item in self.storage.list(f"{table}/part-"):
            if part := part_at(item.key):
                # Known from the plan, so that a scan with a filter on image_id skips files without opening them.
                first, end = self.plan.id_ranges[int(shard_of(part))]
                holds = (image_id >= first) & (image_id < end)
                parts.append(parquet.make_fragment(item.key, filesystem=files, partition_expression=holds))
        return ds.FileSystemDataset(parts, schema, parquet, files)

    @contextmanager
    def _damage_named(self, key: str) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            raise ObjectError(f"{self.storage.uri}/{key}: damaged: {one_line_cause(error)}") from error


class _Values(ValuesView[RunImage]):
    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._run = run

    def __iter__(self) -> Iterator[RunImage]:
        return self._run.images_in_order()


class _Items(ItemsView[str, RunImage]):
    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._run = run

    def __iter__(self) -> Iterator[tuple[str, RunImage]]:
        return ((image.image_id, image) for image in self._run.images_in_order())


def _map_ahead(read: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """The results of `read` in order. Threads read some items ahead."""
    left = iter(items)
    with generator_threads(REQUESTS_AT_ONCE) as threads:
        while some := list(itertools.islice(left, 4 * REQUESTS_AT_ONCE)):
            yield from threads.map(read, some)


def open_finished_run(storage: Storage, moved_to: str | None = None) -> Run:
    """The run in `storage`. Its images are where it read them, or at `moved_to`.

    Raises RunMismatchError if there is no run, StorageError if the store cannot be reached, and ConfigError if
    `moved_to` names another file or pattern than the run was made of.
    """
    return Run(storage, read_run(storage), read_plan(storage).at(moved_to))
