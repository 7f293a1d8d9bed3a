"""Whether the tables of one part agree with each other and with themselves."""

# pyarrow ships no types: strict checking would find every line that touches it unknown.
# pyright: standard
from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from filters import rle
from pipeline.records import STEPS

Row = dict[str, Any]
MASKS_AT_ONCE = 256  # so that what is known of their runs fits into a cache


def part_offences(part_name: str, images: pa.Table, masks: pa.Table) -> Iterator[str]:
    """What is wrong with the rows of a part, which are of the schemas IMAGES and MASKS and valid: a line each."""
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
        return f"says that its shard is {row['shard']}"
    if row["status"] == "ok":
        if row["image_height"] is None or row["image_width"] is None or row["error_step"] or row["error"]:
            return "is ok, but has no size or has an error"
    elif row["status"] not in ("failed", "quarantined"):
        return f"has the unknown status {row['status']}"
    elif row["error_step"] not in STEPS or row["error"] is None or row["n_masks"] != 0:
        return "has failed, but does not say why, or has masks"
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
    sound = (areas == measured_areas) & (boxes == measured_boxes).all(axis=1)
    for row, (image_id, mask_id) in enumerate(zip(image_ids, masks["mask_id"].to_pylist(), strict=True)):
        where, size = f"{image_id}, mask {mask_id}", (height[row], width[row])
        if size != (image := sizes.get(image_id, size)):
            yield f"{where}: the image is {image[0]} x {image[1]} pixels, the mask {size[0]} x {size[1]}"
        elif row in faults:
            yield f"{where}: the RLE {faults[row]}"
        elif areas[row] != measured_areas[row]:
            yield f"{where}: area is {areas[row]}, but the RLE has {measured_areas[row]} pixels"
        elif not sound[row]:
            box, measured = tuple(boxes[row].tolist()), tuple(measured_boxes[row].tolist())
            yield f"{where}: bbox is {box}, but the RLE spans {measured}"
