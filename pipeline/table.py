"""The two tables: their schemas, and the Parquet bytes of a part.

A part holds the masks of one shard as rows, and the images of that shard in the key-value metadata of its footer. So
the creation of one object commits both tables.
"""

# pyarrow ships no types: strict checking would find every line that touches it unknown.
# pyright: standard
from __future__ import annotations

import base64
import inspect
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from maskmill.filters.names import FILTERS
from maskmill.pipeline.records import STEPS, Failure, ImageMasks, ImageResult, Shard, Work

# Part of the identity of a run. Increase it if a column, its meaning or the format of the plan changes.
SCHEMA_VERSION = 2

MASKS = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("mask_id", pa.int32(), nullable=False),  # 0..n-1 within the image
        pa.field("image_height", pa.int32(), nullable=False),  # sizes and positions here and below: pixels
        pa.field("image_width", pa.int32(), nullable=False),
        pa.field("area", pa.int64(), nullable=False),
        pa.field("bbox_x", pa.int32(), nullable=False),
        pa.field("bbox_y", pa.int32(), nullable=False),
        pa.field("bbox_w", pa.int32(), nullable=False),  # x1 - x0 of inclusive corners: the pixel count minus one
        pa.field("bbox_h", pa.int32(), nullable=False),
        pa.field("predicted_iou", pa.float32(), nullable=False),  # can exceed 1
        pa.field("stability_score", pa.float32(), nullable=False),
        pa.field("point_x", pa.float64(), nullable=False),
        pa.field("point_y", pa.float64(), nullable=False),
        pa.field("crop_x", pa.int32(), nullable=False),
        pa.field("crop_y", pa.int32(), nullable=False),
        pa.field("crop_w", pa.int32(), nullable=False),
        pa.field("crop_h", pa.int32(), nullable=False),
        pa.field("rle_counts", pa.binary(), nullable=False),  # COCO compressed
    ]
)

IMAGES = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),  # the part with its masks: `masks/part-<shard>.parquet`
        pa.field("source_uri", pa.string(), nullable=False),
        pa.field("image_height", pa.int32()),  # null if the image failed, as are the drop counters
        pa.field("image_width", pa.int32()),
        pa.field("sha256", pa.string()),  # of the encoded bytes, hexadecimal; null if they could not be read
        pa.field("n_masks", pa.int32(), nullable=False),
        pa.field("status", pa.string(), nullable=False),  # ok | failed | quarantined
        pa.field("error_step", pa.string()),  # one of records.STEPS; null if status is ok
        pa.field("error", pa.string()),
        *(pa.field(f"dropped_{name}", pa.int32()) for name in FILTERS),
        *(pa.field(f"{step}_ms", pa.float32()) for step in STEPS),  # null if the step was not reached
        pa.field("attempt", pa.int32(), nullable=False),
    ]
)

# Keys of the footer metadata. Parquet metadata is UTF-8 text: the images rows are an Arrow IPC stream in base64.
IMAGES_KEY = "maskmill.images"
IDENTITY_KEY = "maskmill.identity"  # sha256 of the run's identity
SCHEMA_VERSION_KEY = "maskmill.schema_version"
LEFT_OUT_KEY = "maskmill.left_out"  # JSON: reason -> images in a tar that are not part of the run
WORK_KEY = "maskmill.work"  # JSON: records.Work; parts of older versions lack it

# About 40 images. Measured with DuckDB and pyarrow on 200,000 masks in groups of 2k to 200k rows: larger groups slow
# down the look-up of one image (9 ms at 4096, 80 ms at 200k) and do not speed up scans.
ROWS_PER_GROUP = 4096
PAGE_BYTES = 64 * 1024
# Columns with few repeated values: dictionary encoding would not shrink them.
_UNIQUE_COLUMNS = ("area", "predicted_iou", "stability_score", "rle_counts")
# RLEs take 8 % fewer bytes than at level 1, the default of pyarrow, and readers are as fast. Writing takes 10 us more
# per mask. Level 19 would take 190 us more and slow down readers (benchmarks/results/2026-11-29-access.md).
RLE_ZSTD_LEVEL = 9


def encode_part(
    shard: Shard,
    results: Sequence[ImageResult],
    identity: str,
    left_out: Mapping[str, int] | None = None,
    work: Work | None = None,
) -> bytes:
    """The part of one shard as Parquet bytes. Equal arguments give equal bytes. Has no rows if no image has a mask.

    Rows are sorted by (image_id, mask_id); mask_id is the position in the generator's order. `identity` is the sha256
    of the run's identity. `left_out` counts the images in a tar that are not part of the run, by reason.
    `work` says which worker made the part, and when.
    """
    ordered = sorted(results, key=lambda result: result.image_id)
    assert len({result.image_id for result in ordered}) == len(ordered), "image ids are unique in a shard"
    batches = [_mask_rows(result.image_id, result.outcome) for result in ordered if result.status == "ok"]
    images = pa.Table.from_pylist([_image_row(shard, result) for result in ordered], schema=IMAGES)
    metadata = {
        IMAGES_KEY: _to_text(images),
        IDENTITY_KEY: identity,
        SCHEMA_VERSION_KEY: str(SCHEMA_VERSION),
        LEFT_OUT_KEY: json.dumps(left_out or {}, sort_keys=True),
    }
    if work:
        metadata[WORK_KEY] = json.dumps(asdict(work))
    return _to_parquet(pa.Table.from_batches(batches, MASKS), ["image_id", "mask_id"], len(batches), metadata)


def images_part(part: bytes, superseded: bool = False) -> bytes:
    """The images part, derived from the footer of a masks part, as Parquet bytes.

    If the part is `superseded` by a retry, its images that are not ok are left out: the retry has their rows.
    """
    footer = read_footer(io.BytesIO(part))
    images = footer.images.filter(pc.field("status") == "ok") if superseded else footer.images
    left_out = json.dumps(footer.left_out, sort_keys=True)
    return _to_parquet(images, ["image_id"], len(images), {LEFT_OUT_KEY: left_out})


@dataclass(frozen=True, eq=False)
class Footer:
    """The key-value metadata in the footer of a part."""

    identity: str  # sha256 of the run's identity
    schema_version: str
    images: pa.Table  # rows of the images table, in the schema IMAGES, sorted by image_id
    left_out: Counter[str]  # reason -> images in a tar that are not part of the run
    work: Work | None  # None: the part was made by a version of maskmill that did not record it


def read_footer(part: BinaryIO) -> Footer:
    """Reads the footer of a part, not its rows. Raises pyarrow.ArrowInvalid or KeyError if the file is not a part."""
    encoded = pq.read_metadata(part).metadata or {}
    metadata = {key.decode(): value.decode() for key, value in encoded.items()}
    with pa.ipc.open_stream(base64.b64decode(metadata[IMAGES_KEY])) as stream:
        images = stream.read_all()
    left_out = Counter(json.loads(metadata.get(LEFT_OUT_KEY, "{}")))
    work = json.loads(metadata.get(WORK_KEY, "null"))
    work = work and Work(work["worker"], work["began"], work["ended"])
    return Footer(metadata[IDENTITY_KEY], metadata[SCHEMA_VERSION_KEY], images, left_out, work)


def read_parquet(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """All rows of a Parquet object. Verifies page checksums. Raises pyarrow.ArrowException or OSError on damage."""
    # A buffer and no threads: a pyarrow thread that releases a Python file while the process exits may abort it.
    file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
    return file.read(columns=columns, use_threads=False)


def _mask_rows(image_id: str, masks: ImageMasks | Failure) -> pa.RecordBatch:
    assert isinstance(masks, ImageMasks)
    rows = len(masks)
    columns = [
        [image_id] * rows,
        range(rows),
        [masks.height] * rows,
        [masks.width] * rows,
        masks.area,
        *masks.boxes.T,
        masks.predicted_iou,
        masks.stability_score,
        *masks.points.T,
        *masks.crop_boxes.T,
        masks.rle_counts,
    ]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, MASKS, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=MASKS)


def mask_columns(rows: pa.Table) -> dict[str, Any]:
    """Keyword arguments for ImageMasks from the rows of one image in the masks table, in their order."""

    def stacked(names: Sequence[str], dtype: type[np.generic]) -> NDArray[Any]:
        return np.stack([rows[name].to_numpy() for name in names], axis=1).astype(dtype)

    return {
        "area": rows["area"].to_numpy(),
        "boxes": stacked(["bbox_x", "bbox_y", "bbox_w", "bbox_h"], np.int64),
        "predicted_iou": rows["predicted_iou"].to_numpy(),
        "stability_score": rows["stability_score"].to_numpy(),
        "points": stacked(["point_x", "point_y"], np.float64),
        "crop_boxes": stacked(["crop_x", "crop_y", "crop_w", "crop_h"], np.int64),
        "rle_counts": tuple(rows["rle_counts"].to_pylist()),
    }


def _image_row(shard: Shard, result: ImageResult) -> dict[str, Any]:
    row: dict[str, Any] = {
        "image_id": result.image_id,
        "shard": shard.name,
        "source_uri": result.source_uri,
        "sha256": result.sha256,
        "n_masks": 0,
        "status": result.status,
        "attempt": result.attempt,
        **{f"{step}_ms": result.milliseconds.get(step) for step in STEPS},
    }
    match result.outcome:
        case Failure(step, reason):
            return row | {"error_step": step, "error": reason}
        case masks:
            dropped = {f"dropped_{name}": masks.dropped.get(name, 0) for name in FILTERS}
            size = {"image_height": masks.height, "image_width": masks.width}
            return row | size | dropped | {"n_masks": len(masks)}


def _to_text(images: pa.Table) -> str:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, IMAGES, options=pa.ipc.IpcWriteOptions(compression="zstd")) as stream:
        stream.write_table(images)
    return base64.b64encode(sink.getvalue()).decode()


def _to_parquet(table: pa.Table, sorted_by: list[str], n_images: int, metadata: dict[str, str]) -> bytes:
    schema = table.schema
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        schema,
        compression="zstd",
        compression_level={"rle_counts": RLE_ZSTD_LEVEL},
        # No query compares RLEs. Their minimum and maximum would take a third of the footer.
        write_statistics=[name for name in schema.names if name != "rle_counts"],  # pyright: ignore[reportArgumentType]
        use_dictionary=[name for name in schema.names if name not in _UNIQUE_COLUMNS],  # pyright: ignore[reportArgumentType]
        write_page_index=True,
        write_page_checksum=True,  # detects flipped bits in scores
        sorting_columns=[pq.SortingColumn(schema.get_field_index(name)) for name in sorted_by],
        data_page_size=PAGE_BYTES,
        **_bloom_filter(n_images),
    ) as writer:
        if len(table) > 0:
            writer.write_table(table, ROWS_PER_GROUP)
        writer.add_key_value_metadata(metadata)
    return sink.getvalue().to_pybytes()


def _bloom_filter(n_images: int) -> dict[str, Any]:
    """Options for a bloom filter on image_id. Empty if this version of pyarrow cannot write one."""
    if "bloom_filter_options" not in inspect.signature(pq.ParquetWriter).parameters:
        return {}
    return {"bloom_filter_options": {"image_id": {"ndv": max(1, n_images), "fpp": 0.01}}}
