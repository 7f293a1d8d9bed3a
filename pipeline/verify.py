"""Whether an output is whole: every planned image has its row, and every row tells the truth about its mask."""

# pyarrow ships no types: strict checking would find every line that touches it unknown.
# pyright: standard
from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from filters import rle
from pipeline.errors import RunMismatchError, StorageError
from pipeline.ledger import RUN_KEY, images_key, masks_key, read_run
from pipeline.plan import PLAN_KEY, Plan, read_plan
from pipeline.records import STEPS, Shard
from pipeline.storage import PROBE_PREFIX, Storage
from pipeline.table import IDENTITY_KEY, IMAGES, MASKS, SCHEMA_VERSION, read_images, read_metadata, read_parquet

Row = dict[str, Any]
# What reading a damaged part can raise.
_DAMAGE = (StorageError, pa.ArrowException, OSError, ValueError, KeyError, MemoryError)


@dataclass(frozen=True)
class Check:
    """What one shard, or the run around the shards, was found to be."""

    offences: tuple[str, ...]  # a line each: which object, what is wrong
    done: bool = False  # whether the shard's part is there
    images: int = 0
    failed: int = 0  # of the images: failed or quarantined
    masks: int = 0


def verify(storage: Storage) -> Iterator[Check]:
    """Checks the run in `storage`: first what holds the shards together, then each shard of its plan.

    Raises RunMismatchError where there is no run or one of another version of maskmill, and StorageError where its
    plan cannot be read: nothing can be checked then.
    """
    run = read_run(storage)
    if run.get("schema_version") != SCHEMA_VERSION:
        raise RunMismatchError(
            f"{storage.uri}: schema version {run.get('schema_version')}, this maskmill verifies {SCHEMA_VERSION}: "
            "use the version that made the output"
        )
    identity = hashlib.sha256(storage.read(RUN_KEY)).hexdigest()
    plan = read_plan(storage)
    keys = {item.key for item in storage.list()}
    yield Check((*_repeated_plans(plan), *_stray_objects(plan, keys)))
    for shard in plan:
        yield _check_shard(storage, shard, identity, keys)


def _repeated_plans(plan: Plan) -> Iterator[str]:
    image_ids = plan.rows["image_id"].drop_null()
    if len(image_ids.unique()) < len(image_ids):
        for image_id, count in Counter(image_ids.to_pylist()).items():
            if count > 1:
                yield f"{PLAN_KEY}: {image_id} is planned {count} times"


def _stray_objects(plan: Plan, keys: Collection[str]) -> Iterator[str]:
    known = {RUN_KEY, PLAN_KEY}
    for shard in plan:
        known |= {masks_key(shard.name), images_key(shard.name)}
    for key in sorted(set(keys) - known):
        if not key.startswith(PROBE_PREFIX):
            yield f"{key}: does not belong to the run"


def _check_shard(storage: Storage, shard: Shard, identity: str, keys: Collection[str]) -> Check:
    key, derived_key = masks_key(shard.name), images_key(shard.name)
    if key not in keys:
        orphan = [f"{derived_key}: there, but its masks part is missing"] if derived_key in keys else []
        return Check((f"{key}: missing: `maskmill generate` again makes it", *orphan))
    try:
        data = storage.read(key)
        part = io.BytesIO(data)
        if read_metadata(part)[IDENTITY_KEY] != identity:
            return Check((f"{key}: belongs to another run than {RUN_KEY} describes",), done=True)
        images = read_images(part)
        masks = read_parquet(data)
        # Offsets that lead out of a buffer would end the process, not raise, where their values are read.
        images.validate(full=True)
        masks.validate(full=True)
    except _DAMAGE as error:
        return Check((f"{key}: damaged: {_one_line(error)}",), done=True)
    for name, table, schema in (("images", images, IMAGES), ("masks", masks, MASKS)):
        if not table.schema.equals(schema):
            return Check((f"{key}: the {name} table has other columns than maskmill writes",), done=True)
        if nulls := [field.name for field in schema if not field.nullable and table[field.name].null_count]:
            return Check((f"{key}: the {name} table has nulls in {', '.join(nulls)}",), done=True)
    offences = [f"{key}: {offence}" for offence in _part_offences(shard, images.to_pylist(), masks.to_pylist())]
    if derived_key not in keys:
        offences.append(f"{derived_key}: missing: `maskmill generate` again derives it")
    elif offence := _derived_offence(storage, derived_key, images):
        offences.append(f"{derived_key}: {offence}")
    failed = sum(status != "ok" for status in images["status"].to_pylist())
    return Check(tuple(offences), done=True, images=len(images), failed=failed, masks=len(masks))


def _derived_offence(storage: Storage, key: str, images: pa.Table) -> str | None:
    try:
        derived = read_parquet(storage.read(key))
    except _DAMAGE as error:
        return f"damaged: {_one_line(error)}"
    return None if derived.equals(images) else "differs from the footer of its masks part"


def _part_offences(shard: Shard, image_rows: list[Row], mask_rows: list[Row]) -> Iterator[str]:
    yield from _plan_offences(shard, [row["image_id"] for row in image_rows])
    for row in image_rows:
        if offence := _image_offence(shard, row):
            yield f"{row['image_id']}: {offence}"
    yield from _count_offences(image_rows, mask_rows)
    by_id = {row["image_id"]: row for row in image_rows}
    for row in mask_rows:
        if offence := _mask_offence(row, by_id.get(row["image_id"])):
            yield f"{row['image_id']}, mask {row['mask_id']}: {offence}"


def _plan_offences(shard: Shard, image_ids: list[str]) -> Iterator[str]:
    if image_ids != sorted(image_ids):
        yield "the images are not sorted by image_id"
    for image_id, count in Counter(image_ids).items():
        if count > 1:
            yield f"{image_id}: {count} rows in the images table"
    if shard.image_ids is None:
        strays = [image_id for image_id in image_ids if not _is_in_tar(image_id, shard.uri)]
    else:
        for image_id in sorted(set(shard.image_ids) - set(image_ids)):
            yield f"{image_id}: planned, but has no row in the images table"
        strays = sorted(set(image_ids) - set(shard.image_ids))
    for image_id in strays:
        yield f"{image_id}: has a row in the images table, but was not planned"


def _is_in_tar(image_id: str, tar_uri: str) -> bool:
    """Whether the id begins with the path of the tar: the end of its address, one part or more."""
    parts = image_id.split("/")
    return any(tar_uri.endswith("/" + "/".join(parts[:count])) for count in range(1, len(parts) + 1))


def _image_offence(shard: Shard, row: Row) -> str | None:
    if row["shard"] != shard.name:
        return f"says that its shard is {row['shard']}"
    if row["status"] == "ok":
        if row["image_height"] is None or row["image_width"] is None or row["error_step"] or row["error"]:
            return "is ok, but has no size or has an error"
    elif row["status"] not in ("failed", "quarantined"):
        return f"has the unknown status {row['status']}"
    elif row["error_step"] not in STEPS or row["error"] is None or row["n_masks"] != 0:
        return "has failed, but does not say why, or has masks"
    return None


def _count_offences(image_rows: list[Row], mask_rows: list[Row]) -> Iterator[str]:
    order = [(row["image_id"], row["mask_id"]) for row in mask_rows]
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


def _mask_offence(row: Row, image: Row | None) -> str | None:
    height, width = row["image_height"], row["image_width"]
    if image is not None and (height, width) != (image["image_height"], image["image_width"]):
        return f"the image is {image['image_height']} x {image['image_width']} pixels, the mask {height} x {width}"
    try:
        area, box = rle.measure(rle.run_lengths(row["rle_counts"]), height, width)
    except ValueError as error:
        return f"the RLE {error}"
    if area != row["area"]:
        return f"area is {row['area']}, but the RLE has {area} pixels"
    if box != tuple(row[f"bbox_{side}"] for side in "xywh"):
        return f"bbox is {tuple(row[f'bbox_{side}'] for side in 'xywh')}, but the RLE spans {box}"
    return None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
