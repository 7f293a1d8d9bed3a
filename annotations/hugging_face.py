"""Writes data sets of Hugging Face: Parquet files with a card that says how to load them.

Source: https://huggingface.co/docs/hub/datasets-manual-configuration
"""

# pyarrow ships no types: strict checking would find every line that touches it unknown.
# pyright: standard
from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, islice
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from maskmill.annotations.export import ExportFile, ExportImage, Format, file_per_images
from maskmill.annotations.sa1b import sa1b_fields
from maskmill.annotations.selection import Selection
from maskmill.pipeline.table import MASKS

Layout = Literal["nested", "tables"]
# A row group is complete when it has so many bytes of images, or so many images.
GROUP_BYTES = 32 << 20
GROUP_IMAGES = 100

_IMAGE = pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
_BOX = pa.list_(pa.float64())
_NESTED = pa.schema(
    [
        _IMAGE,
        ("image_id", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        pa.field(
            "annotations",
            pa.list_(
                pa.struct(  # the fields of SA-1B
                    [
                        ("id", pa.int64()),
                        ("segmentation", pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])),
                        ("bbox", _BOX),
                        ("area", pa.int64()),
                        ("predicted_iou", pa.float64()),
                        ("stability_score", pa.float64()),
                        ("crop_box", _BOX),
                        ("point_coords", pa.list_(pa.list_(pa.float64()))),
                    ]
                )
            ),
        ),
    ]
)
_IMAGES = pa.schema(
    [
        _IMAGE,
        ("image_id", pa.string()),
        ("image_height", pa.int32()),
        ("image_width", pa.int32()),
        ("source_uri", pa.string()),
        ("sha256", pa.string()),
        ("n_masks", pa.int32()),
    ]
)
_CARD = """---
pretty_name: Masks by maskmill
task_categories:
- image-segmentation
tags:
- segment-anything
configs:
{configs}---

# Masks by maskmill

{images} images with {masks} masks.

{text}
    mask = pycocotools.mask.decode({decode})
"""
_TEXT = {
    "nested": "One row per image; `annotations` holds its masks, with the fields of SA-1B.\n\n"
    "    import datasets, pycocotools.mask\n"
    '    row = datasets.load_dataset("<this repository>", split="train")[0]\n',
    "tables": "The configuration `masks` has one row per mask, `images` one row per image; `image_id` joins them.\n\n"
    "    import datasets, pycocotools.mask\n"
    '    row = datasets.load_dataset("<this repository>", "masks", split="train")[0]\n',
}
_DECODE = {
    "nested": 'row["annotations"][0]["segmentation"]',
    "tables": '{"size": [row["image_height"], row["image_width"]], "counts": row["rle_counts"]}',
}
_CONFIGS = {
    "nested": "- config_name: default\n  data_files: data/*.parquet\n",
    "tables": "- config_name: masks\n  data_files: masks/*.parquet\n  default: true\n"
    "- config_name: images\n  data_files: images/*.parquet\n",
}


def hugging_face_format(layout: Layout = "nested", images_per_file: int = 1000) -> Format:
    """Writes Parquet files and a card, README.md.

    `nested`: one row per image with a list of masks, in data/. `tables`: the tables of maskmill, in masks/ and images/.
    The column `image` has the image files; it is missing if they are not wanted.
    """

    def key(folder: str, number: int, of: int) -> str:
        return f"{folder}/train-{number:05d}-of-{of:05d}.parquet"

    def files(selection: Selection) -> Iterator[ExportFile]:
        parquet = partial(file_per_images, selection, images_per_file)
        if layout == "nested":
            yield from parquet(partial(key, "data"), partial(_encode, _NESTED, _nested_row))
        else:
            yield from parquet(partial(key, "masks"), _encode_masks, with_data=False)
            yield from parquet(partial(key, "images"), partial(_encode, _IMAGES, _image_row))
        yield ExportFile("README.md", 0, lambda: iter(()), lambda _: [_card(layout, selection)])

    return Format("hf", files, {"layout": layout, "images_per_file": images_per_file}, images_inside=True)


def _encode(
    schema: pa.Schema, to_row: Callable[[ExportImage], dict[str, Any]], images: Iterator[ExportImage]
) -> Iterator[bytes]:
    first = next(images, None)
    if first is None or first.data is None:
        schema = schema.remove(schema.get_field_index("image"))
    else:
        # `datasets` reads this: the column holds images. Columns without a feature get that of their type.
        features = {"features": {"image": {"_type": "Image"}}}
        schema = schema.with_metadata({"huggingface": json.dumps({"info": features})})
    images = images if first is None else chain([first], images)
    return _parquet(schema, (pa.Table.from_pylist(rows, schema) for rows in _groups(map(to_row, images))))


def _groups(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The rows of each row group."""
    group: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        group.append(row)
        size += len(row["image"]["bytes"] or b"")
        if size >= GROUP_BYTES or len(group) >= GROUP_IMAGES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _nested_row(image: ExportImage) -> dict[str, Any]:
    fields = sa1b_fields(image)
    return {
        "image": {"bytes": image.data, "path": image.image.name},
        "image_id": image.image.image_id,
        "height": image.image.height,
        "width": image.image.width,
        "annotations": fields["annotations"],
    }


def _image_row(image: ExportImage) -> dict[str, Any]:
    selected = image.image
    return {
        "image": {"bytes": image.data, "path": selected.name},
        "image_id": selected.image_id,
        "image_height": selected.height,
        "image_width": selected.width,
        "source_uri": selected.source_uri,
        "sha256": selected.sha256,
        "n_masks": selected.n_masks,
    }


def _encode_masks(images: Iterator[ExportImage]) -> Iterator[bytes]:
    def groups() -> Iterator[pa.Table]:
        while some := [image.masks.rows for image in islice(images, GROUP_IMAGES)]:
            yield pa.concat_tables(some)

    return _parquet(MASKS, groups())


class _Sink(io.RawIOBase):
    """Collects what pyarrow writes."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._position = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def write(self, data: Any) -> int:
        self._chunks.append(bytes(data))
        self._position += len(self._chunks[-1])
        return len(self._chunks[-1])

    def drain(self) -> bytes:
        """What was written since the last call."""
        data = b"".join(self._chunks)
        self._chunks.clear()
        return data


def _parquet(schema: pa.Schema, groups: Iterator[pa.Table]) -> Iterator[bytes]:
    """A Parquet file in chunks: one row group per table."""
    sink = _Sink()
    with pq.ParquetWriter(sink, schema, compression="zstd", write_page_index=True) as writer:
        for table in groups:
            if len(table):
                writer.write_table(table, len(table))
            yield sink.drain()
    yield sink.drain()


def _card(layout: Layout, selection: Selection) -> bytes:
    return _CARD.format(
        configs=_CONFIGS[layout],
        images=len(selection),
        masks=selection.n_masks,
        text=_TEXT[layout],
        decode=_DECODE[layout],
    ).encode()
