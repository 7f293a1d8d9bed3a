"""Checks the objects of one shard: the part against the plan, the tables against each other, columns against RLEs."""

# pyarrow ships no types: strict checking would find every line that touches it unknown.
# pyright: standard
from __future__ import annotations

import io
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from maskmill.filters import rle
from maskmill.pipeline.errors import one_line_cause
from maskmill.pipeline.ledger import RUN_KEY
from maskmill.pipeline.parts import images_key, masks_key
from maskmill.pipeline.records import STEPS, Shard
from maskmill.pipeline.table import IMAGES, MASKS, SCHEMA_VERSION, read_footer, read_parquet

Row = dict[str, Any]
# Exceptions that reading a damaged part can raise.
_DAMAGE = (pa.ArrowException, OSError, ValueError, KeyError, MemoryError)
MASKS_AT_ONCE = 64  # their run lengths fit into a CPU cache


@dataclass(frozen=True)
class Check:
    """The result of checking one shard with its retries, or the plan and the list of objects."""

    offences: tuple[str, ...]  # one line each: the object and what is wrong
    done: bool = False  # whether the shard has a part
    images: int = 0  # rows of the images table, without superseded ones
    failed: int = 0  # of the images: failed or quarantined
    masks: int = 0
    shards: int = 0  # number of shards in the plan; set in the first check only


@dataclass(frozen=True)
class Chain:
    """The objects of one shard: the part as planned, the parts of its retries, and their images parts."""

    shard: Shard  # as planned
    retries: int  # the number of the last retry; 0 if there is none
    objects: Mapping[str, bytes | str]  # key -> content, or why it cannot be read; missing objects have no key
    identity: str  # of the run: sha256


def check_shard(chain: Chain) -> Check:
    """Checks each part of a shard, and that each retry holds exactly the images that were not ok in the part before."""
    offences: list[str] = []
    images = failed = masks = 0
    ok: set[str] = set()  # in the parts so far
    left = None if chain.shard.image_ids is None else set(chain.shard.image_ids)  # due in this part; None: unknown
    for part in (replace(chain.shard, retry=retry) for retry in range(chain.retries + 1)):
        key = masks_key(part.name)
        tables = _read_part(chain, part)
        if isinstance(tables, str):
            offences.append(f"{key}: {tables}")
            left = None
            if key not in chain.objects and images_key(part.name) in chain.objects:
                offences.append(f"{images_key(part.name)}: there, but its masks part is missing")
            continue
        found, seen = tables.images, tables.images.filter(pc.field("status") == "ok")
        image_ids, done = found["image_id"].to_pylist(), set(seen["image_id"].to_pylist())
        rows = (
            *_membership(part, image_ids, left, ok, tables.left_out),
            *_row_offences(part.name, found, tables.masks),
        )
        offences += (f"{key}: {offence}" for offence in rows)
        if part.retry == chain.retries:
            seen = found
        offences += _derived_offences(chain, images_key(part.name), seen)
        ok |= done
        left = set(image_ids) - done
        images, failed, masks = images + len(seen), len(left), masks + len(tables.masks)
    return Check(tuple(offences), masks_key(chain.shard.name) in chain.objects, images, failed, masks)


@dataclass(frozen=True)
class _Tables:
    """The content of a part."""

    images: pa.Table
    masks: pa.Table
    left_out: int  # images in a tar that are not part of the run


def _read_part(chain: Chain, part: Shard) -> _Tables | str:
    """The tables of a part if it is valid and has the right schemas; else what is wrong with it."""
    data = chain.objects.get(masks_key(part.name))
    if data is None:
        return "missing: " + ("but a later retry exists" if chain.retries else "run `maskmill generate` again")
    if isinstance(data, str):
        return data
    if not data.startswith(b"PAR1"):  # pyarrow does not check this; other readers do
        return "damaged: does not start like a Parquet file"
    try:
        footer = read_footer(io.BytesIO(data))
        if footer.identity != chain.identity or footer.schema_version != str(SCHEMA_VERSION):
            return f"belongs to another run than {RUN_KEY} describes"
        images, masks = footer.images, read_parquet(data)
        # Reading values at offsets outside a buffer would crash the process instead of raising.
        images.validate(full=True)
        masks.validate(full=True)
    except _DAMAGE as error:
        return f"damaged: {one_line_cause(error)}"
    for name, table, schema in (("images", images, IMAGES), ("masks", masks, MASKS)):
        if not table.schema.equals(schema):
            return f"the {name} table has other columns than maskmill writes"
        if nulls := [field.name for field in schema if not field.nullable and table[field.name].null_count]:
            return f"the {name} table has nulls in {', '.join(nulls)}"
    return _Tables(images, masks, footer.left_out.total())


def _membership(
    part: Shard, image_ids: list[str], left: set[str] | None, ok: Collection[str], left_out: int
) -> Iterator[str]:
    """Checks that a part has exactly the images `left` for it. The images in `ok` are in an earlier part."""
    present, due = set(image_ids), "left to retry" if part.retry else "planned"
    if part.image_ids is None:
        strays = {image_id for image_id in present if image_id in ok or not _is_in_tar(image_id, part.uri)}
        missing = replace(part, again=frozenset(left or ())).missing(present)
        if not present and not left_out:
            yield f"{part.uri}: has no row in the images table"
    else:
        strays = present & set(ok) if left is None else present - left
        missing = (left or set()) - present
    for image_id in sorted(missing):
        yield f"{image_id}: {due}, but has no row in the images table"
    for image_id in sorted(strays):
        yield f"{image_id}: has a row in the images table, but is not {due}"


def _is_in_tar(image_id: str, tar_uri: str) -> bool:
    """Whether the id begins with the path of the tar, which is the end of the address of the tar."""
    parts = image_id.split("/")
    return any(tar_uri.endswith("/" + "/".join(parts[:count])) for count in range(1, len(parts) + 1))


def _derived_offences(chain: Chain, key: str, images: pa.Table) -> Iterator[str]:
    """Checks that an images part has the rows derived from its masks part."""
    data = chain.objects.get(key)
    if data is None:
        yield f"{key}: missing: run `maskmill generate` again to derive it"
    elif isinstance(data, str):
        yield f"{key}: {data}"
    else:
        try:
            if not read_parquet(data).equals(images):
                yield f"{key}: differs from the footer of its masks part"
        except _DAMAGE as error:
            yield f"{key}: damaged: {one_line_cause(error)}"


def _row_offences(part_name: str, images: pa.Table, masks: pa.Table) -> Iterator[str]:
    """Checks the rows of a part, which are valid and have the schemas IMAGES and MASKS. Yields one line per fault."""
    rows = images.to_pylist()
    image_ids = [row["image_id"] for row in rows]
    if image_ids != sorted(image_ids):
        yield "the images are not sorted by image_id"
    for image_id, count in Counter(image_ids).items():
        if count > 1:
            yield f"{image_id}: {count} rows in the images table"
    for row in rows:
        if offence := _image_offence(part_name, row):
            yield f"{row['image_id']}: {offence}"
    yield from _count_offences(rows, masks)
    sizes = {row["image_id"]: (row["image_height"], row["image_width"]) for row in rows if row["status"] == "ok"}
    for start in range(0, len(masks), MASKS_AT_ONCE):
        yield from _mask_offences(masks.slice(start, MASKS_AT_ONCE), sizes)


def _image_offence(part_name: str, row: Row) -> str | None:
    if row["shard"] != part_name:
        return f"its column `shard` is {row['shard']}"
    if row["status"] == "ok":
        if row["image_height"] is None or row["image_width"] is None or row["error_step"] or row["error"]:
            return "its status is ok, but it has no size or has an error"
    elif row["status"] not in ("failed", "quarantined"):
        return f"its status {row['status']} is unknown"
    elif row["error_step"] not in STEPS or row["error"] is None or row["n_masks"] != 0:
        return "it has failed, but has no reason or has masks"
    return None


def _count_offences(image_rows: list[Row], masks: pa.Table) -> Iterator[str]:
    order = list(zip(masks["image_id"].to_pylist(), masks["mask_id"].to_pylist(), strict=True))
    if order != sorted(order):
        yield "the masks are not sorted by (image_id, mask_id)"
    mask_ids: dict[str, list[int]] = {}
    for image_id, mask_id in order:
        mask_ids.setdefault(image_id, []).append(mask_id)
    for row in image_rows:
        found = mask_ids.pop(row["image_id"], [])
        if len(found) != row["n_masks"]:
            yield f"{row['image_id']}: n_masks is {row['n_masks']}, but there are {len(found)} masks"
        elif sorted(found) != list(range(len(found))):
            yield f"{row['image_id']}: the mask_ids are not 0 to {len(found) - 1}"
    for image_id in mask_ids:
        yield f"{image_id}: has masks, but no row in the images table"


def _mask_offences(masks: pa.Table, sizes: dict[str, tuple[int, int]]) -> Iterator[str]:
    image_ids = masks["image_id"].to_pylist()
    height, width, areas, *sides = (
        masks[name].to_numpy().astype(np.int64)
        for name in ("image_height", "image_width", "area", "bbox_x", "bbox_y", "bbox_w", "bbox_h")
    )
    boxes = np.stack(sides, axis=1)
    measured_areas, measured_boxes, faults = rle.measure(masks["rle_counts"].to_pylist(), height, width)
    wrong = (areas != measured_areas) | (boxes != measured_boxes).any(axis=1)
    wrong[list(faults)] = True
    declared = list(zip(height.tolist(), width.tolist(), strict=True))
    wrong |= [size != sizes.get(image_id, size) for image_id, size in zip(image_ids, declared, strict=True)]
    for row in np.flatnonzero(wrong).tolist():
        where, size = f"{image_ids[row]}, mask {masks['mask_id'][row]}", declared[row]
        if size != (image := sizes.get(image_ids[row], size)):
            yield f"{where}: the image is {image[0]} x {image[1]} pixels, the mask {size[0]} x {size[1]}"
        elif row in faults:
            yield f"{where}: the RLE {faults[row]}"
        elif areas[row] != measured_areas[row]:
            yield f"{where}: area is {areas[row]}, but the RLE has {measured_areas[row]} pixels"
        else:
            box, spanned = tuple(boxes[row].tolist()), tuple(measured_boxes[row].tolist())
            yield f"{where}: bbox is {box}, but the RLE spans {spanned}"
