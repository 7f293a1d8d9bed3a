"""The images and masks of a run that an export writes: chosen by a SQL condition and a limit, read part by part."""

# pyarrow ships no types: strict checking would find every line that touches it unknown.
# pyright: standard
from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from maskmill.model.errors import MaskmillError
from maskmill.pipeline.errors import ConfigError, ObjectError, StorageError, one_line_cause
from maskmill.pipeline.finished import Run
from maskmill.pipeline.parts import masks_key
from maskmill.pipeline.records import ImageMasks
from maskmill.pipeline.sources.names import clean_path
from maskmill.pipeline.table import IMAGES, MASKS, mask_columns

# The rows of a selection: columns of IMAGES, and
_COLUMNS = ("image_id", "shard", "source_uri", "image_height", "image_width", "sha256", "n_masks")
_ADDED = [
    pa.field("planned_shard", pa.int32()),  # index of the shard in the plan
    pa.field("name", pa.string()),  # path of the image file in an export: the image_id, as a valid key
    pa.field("stem", pa.string()),  # `name` without its extension, made unique; null if that is not needed
    pa.field("mask_ids", pa.list_(pa.int32())),  # the selected masks; null: all masks of the image
    pa.field("n_selected", pa.int32()),
    pa.field("first_mask", pa.int64()),  # number of selected masks of the images before
]
# (run, SQL, further tables by name) -> rows
ReadRows = Callable[[Run, str, Mapping[str, pa.Table]], pa.Table]
_AFTER_ALL = "\U0010ffff"  # greater than any image_id
_ROWS_AT_ONCE = 1024  # rows of a selection that are Python objects at a time


@dataclass(frozen=True, eq=False)
class SelectedImage:
    """One image of a selection, without its masks."""

    number: int  # 1, 2... in the selection
    image_id: str
    name: str  # path of the image file in an export
    stem: str  # path without extension of the file that belongs to the image in an export
    shard: int  # index in the plan
    part: str  # that has its masks
    source_uri: str
    height: int
    width: int
    sha256: str | None
    mask_ids: NDArray[np.int32] | None  # None: all masks
    n_masks: int  # selected masks
    first_mask: int  # number of selected masks of the images before this one

    @property
    def stem_name(self) -> str:
        """The name of an image file that is found by the stem of its masks file."""
        return self.stem + PurePosixPath(self.name).suffix


@dataclass(frozen=True, eq=False)
class Selection:
    """The selected images of a run in the order of its plan. Holds hundreds of bytes per image and no masks."""

    run: Run
    table: pa.Table  # one row per image
    failed: int  # images of the run that failed or were quarantined: not selected
    shards_missing: int  # shards that are not done yet
    renamed: int  # images with a `name` or `stem` that is not that of their image_id
    sha256: str  # of the committed parts: equal if the run has not changed

    def __len__(self) -> int:
        return len(self.table)

    @property
    def n_masks(self) -> int:
        """The number of selected masks."""
        return int(self.table["n_selected"].to_numpy().sum(dtype=np.int64))

    def images(self, start: int = 0, stop: int | None = None) -> Iterator[SelectedImage]:
        """The images from `start` to `stop`, counted from 0."""
        number = start
        for batch in self.table.slice(start, None if stop is None else stop - start).to_batches(_ROWS_AT_ONCE):
            for row in batch.to_pylist():
                number += 1
                mask_ids = row["mask_ids"]
                yield SelectedImage(
                    number=number,
                    image_id=row["image_id"],
                    name=row["name"],
                    stem=row["stem"] or _stem(row["name"]),
                    shard=row["planned_shard"],
                    part=row["shard"],
                    source_uri=row["source_uri"],
                    height=row["image_height"],
                    width=row["image_width"],
                    sha256=row["sha256"],
                    mask_ids=None if mask_ids is None else np.array(mask_ids, np.int32),
                    n_masks=row["n_selected"],
                    first_mask=row["first_mask"],
                )


@dataclass(frozen=True, eq=False)
class SelectedMasks(ImageMasks):
    """The selected masks of one image."""

    rows: pa.Table  # of the masks table


def select(
    run: Run, read_rows: ReadRows, where: str | None = None, limit: int | None = None, unique_stems: bool = False
) -> Selection:
    """The images that are `ok`, up to `limit`, and of these the masks that meet the SQL condition `where`.

    The condition sees the columns of both tables: the images, left-joined with their masks. An image is selected if one
    of its masks meets the condition; an image without masks, if it meets the condition itself (its mask columns are
    null). `read_rows` is `tables.query.read_rows`. With `unique_stems` no two images have the same stem.

    Raises ConfigError if the condition is not valid, ObjectError if a part is damaged, and StorageError if the store
    cannot be reached.
    """
    columns = [*_COLUMNS, "status"] if where is None else IMAGES.names
    tables = [IMAGES.empty_table().select(columns).append_column(_ADDED[0], pa.array([], pa.int32()))]
    shards = 0
    for done in run.done_shards():
        shards += 1
        indices = pa.array(np.full(len(done.images), done.shard.index, np.int32))
        tables.append(done.images.select(columns).append_column(_ADDED[0], indices))
    images = pa.concat_tables(tables)
    parts = hashlib.sha256("\n".join(sorted(set(images["shard"].to_pylist()))).encode())
    ok = images.filter(pc.field("status") == "ok")
    table = ok.select([*_COLUMNS, "planned_shard"])
    if where is None:
        table = table.slice(0, limit)
        mask_ids, n_selected = pa.nulls(len(table), pa.list_(pa.int32())), table["n_masks"].to_numpy()
    else:
        rows = _matching(run, ok, where, read_rows).slice(0, limit)
        table = table.take(rows["_position"])
        mask_ids = rows["mask_ids"]
        n_selected = np.array([len(ids) for ids in mask_ids], np.int32)
    image_ids = table["image_id"].to_pylist()
    names = _unique(map(_key, image_ids))
    stems = _unique(map(_stem, names)) if unique_stems else pa.nulls(len(names), pa.string())
    first_mask = np.cumsum(n_selected, dtype=np.int64) - n_selected
    for field, column in zip(_ADDED[1:], (names, stems, mask_ids, n_selected, first_mask), strict=True):
        column = column if isinstance(column, pa.ChunkedArray) else pa.array(column, field.type)
        table = table.append_column(field, column)
    renamed = sum(
        name != image_id or (unique_stems and stem != _stem(name))
        for name, stem, image_id in zip(names, stems, image_ids, strict=True)
    )
    table = table.combine_chunks()
    return Selection(run, table, len(images) - len(ok), len(run.plan) - shards, renamed, parts.hexdigest())


def _matching(run: Run, images: pa.Table, where: str, read_rows: ReadRows) -> pa.Table:
    """Rows of `images`, by position, with an image or masks that meet the condition, and the ids of these masks."""
    # The newline before the parenthesis ends a comment in the condition.
    query = f"""
        SELECT _position, coalesce(list(mask_id ORDER BY mask_id) FILTER (mask_id IS NOT NULL), []) AS mask_ids
        FROM _done_images AS images
        LEFT JOIN (SELECT * EXCLUDE (image_height, image_width) FROM masks) AS masks USING (image_id)
        WHERE ({where}
        ) GROUP BY _position ORDER BY _position"""
    numbered = images.append_column("_position", pa.array(np.arange(len(images))))
    try:
        rows = read_rows(run, query, {"_done_images": numbered})
    except StorageError:
        raise
    except MaskmillError as error:
        raise ConfigError(f"--where {where!r}: {one_line_cause(error).removeprefix('query: ')}") from error
    return rows.cast(pa.schema([("_position", pa.int64()), ("mask_ids", pa.list_(pa.int32()))]))


def _key(image_id: str) -> str:
    """An image_id as a valid key: relative, without empty and hidden parts."""
    parts = clean_path(image_id.replace("\0", "")).split("/")
    return "/".join(f"_{part}" if part.startswith(".") else part for part in parts) or "_"


def _unique(paths: Iterable[str]) -> list[str]:
    """The paths; #2, #3... is added to the stem of one that repeats."""
    names: list[str] = []
    taken: set[str] = set()
    for path in paths:
        name, number = path, 1
        while name in taken:
            number += 1
            stem = _stem(path)
            name = f"{stem}#{number}{path[len(stem) :]}"
        taken.add(name)
        names.append(name)
    return names


def _stem(name: str) -> str:
    """A path without its extension."""
    return name.removesuffix(PurePosixPath(name).suffix)


def read_masks(run: Run, images: Iterable[SelectedImage]) -> Iterator[tuple[SelectedImage, SelectedMasks]]:
    """Each image with its selected masks. `images` are in the order of a selection.

    Memory holds one row group of one part. Raises ObjectError if a part or a mask is damaged, and StorageError if the
    store cannot be reached.
    """
    for part, of_part in groupby(images, lambda image: image.part):
        tables = run.masks_by_image(part)
        at, found = "", MASKS.empty_table()
        for image in of_part:
            while image.n_masks and at < image.image_id:
                found = next(tables, MASKS.empty_table())
                at = found["image_id"][0].as_py() if len(found) else _AFTER_ALL
            masks = found if image.n_masks and at == image.image_id else MASKS.empty_table()
            if image.mask_ids is not None:
                masks = masks.filter(pc.field("mask_id").isin(image.mask_ids))
            if len(masks) != image.n_masks:
                raise ObjectError(
                    f"{run.storage.uri}/{masks_key(part)}: {image.image_id} has {len(masks)} masks, not {image.n_masks}"
                )
            yield image, _selected(run, image, masks)


def _selected(run: Run, image: SelectedImage, rows: pa.Table) -> SelectedMasks:
    columns = mask_columns(rows)
    run.check_rles(image.image_id, columns["rle_counts"], image.height, image.width)
    return SelectedMasks(height=image.height, width=image.width, **columns, dropped={}, rows=rows)
