"""Parts: what is in them, who can read them, and that the same input gives the same bytes."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from pycocotools import mask as coco

from maskmill.filters.names import FILTERS
from maskmill.pipeline.records import STEPS, Failure, ImageResult, Shard
from maskmill.pipeline.table import (
    IMAGES,
    MASKS,
    ROWS_PER_GROUP,
    encode_part,
    images_part,
    read_footer,
)
from testing.synthetic_runs import mask_pool
from tests.fakes import image_result

SHARD = Shard(7, "/photographs")
FAILED = ImageResult("b/broken.jpg", "/photographs/b/broken.jpg", None, Failure("decode", "cut off"), {}, "failed")


def random_masks(count: int, seed: int = 0, height: int = 11, width: int = 17) -> NDArray[np.bool_]:
    return np.random.default_rng(seed).random((count, height, width)) > 0.6


def results() -> list[ImageResult]:
    """In no order: ids that sort differently by bytes than by people's habits, one without masks, one failed."""
    return [
        image_result("é.jpg", random_masks(2, seed=1)),
        image_result("a.jpg", random_masks(3, seed=2)),
        FAILED,
        image_result("Z.jpg", random_masks(0)),
    ]


def write_run(folder: Path, parts: dict[str, bytes]) -> None:
    for table in ("masks", "images"):
        (folder / table).mkdir()
    for name, part in parts.items():
        (folder / "masks" / f"part-{name}.parquet").write_bytes(part)
        (folder / "images" / f"part-{name}.parquet").write_bytes(images_part(part))


def masks_of(part: bytes) -> pa.Table:
    return pq.read_table(io.BytesIO(part))


def query(sql: str) -> list[Any]:
    return duckdb.connect().execute(sql).fetchall()


def test_columns_are_those_of_the_design():
    assert MASKS.names == [
        *("image_id", "mask_id", "image_height", "image_width", "area", "bbox_x", "bbox_y", "bbox_w", "bbox_h"),
        *("predicted_iou", "stability_score", "point_x", "point_y", "crop_x", "crop_y", "crop_w", "crop_h"),
        "rle_counts",
    ]
    assert IMAGES.names == [
        *("image_id", "shard", "source_uri", "image_height", "image_width", "sha256", "n_masks"),
        *("status", "error_step", "error"),
        *(f"dropped_{name}" for name in FILTERS),
        *(f"{step}_ms" for step in STEPS),
        "attempt",
    ]


def test_part_holds_every_value_of_every_mask():
    result = image_result("a.jpg", random_masks(3))
    masks = result.outcome
    assert not isinstance(masks, Failure)
    table = masks_of(encode_part(SHARD, [result], "id"))
    assert table.schema.equals(MASKS)
    columns = table.to_pydict()
    assert columns["image_id"] == ["a.jpg"] * 3
    assert columns["mask_id"] == [0, 1, 2]
    assert columns["image_height"] == [11] * 3
    assert columns["image_width"] == [17] * 3
    assert columns["area"] == masks.area.tolist()
    assert list(zip(*(columns[f"bbox_{side}"] for side in "xywh"), strict=True)) == [tuple(box) for box in masks.boxes]
    assert columns["predicted_iou"] == masks.predicted_iou.tolist()
    assert columns["stability_score"] == masks.stability_score.tolist()
    assert list(zip(columns["point_x"], columns["point_y"], strict=True)) == [tuple(point) for point in masks.points]
    assert list(zip(*(columns[f"crop_{side}"] for side in "xywh"), strict=True)) == [(0, 0, 17, 11)] * 3
    assert columns["rle_counts"] == list(masks.rle_counts)


def test_rle_counts_go_straight_into_pycocotools():
    masks_NHW = random_masks(4)
    rows = masks_of(encode_part(SHARD, [image_result("a.jpg", masks_NHW)], "id")).to_pylist()
    for row, mask in zip(rows, masks_NHW, strict=True):
        size = [row["image_height"], row["image_width"]]
        np.testing.assert_array_equal(coco.decode({"size": size, "counts": row["rle_counts"]}), mask)


def test_rows_are_sorted_by_the_bytes_of_image_id_then_mask_id():
    rows = masks_of(encode_part(SHARD, results(), "id")).to_pylist()
    keys = [(row["image_id"].encode(), row["mask_id"]) for row in rows]
    assert keys == sorted(keys)
    assert [row["image_id"] for row in rows] == ["a.jpg"] * 3 + ["é.jpg"] * 2


def test_part_carries_one_row_per_image_in_its_footer():
    rows = read_footer(io.BytesIO(encode_part(SHARD, results(), "id"))).images.to_pylist()
    assert [(row["image_id"], row["status"], row["n_masks"]) for row in rows] == [
        ("Z.jpg", "ok", 0),
        ("a.jpg", "ok", 3),
        ("b/broken.jpg", "failed", 0),
        ("é.jpg", "ok", 2),
    ]
    ok, failed = rows[1], rows[2]
    assert (ok["shard"], ok["source_uri"], ok["attempt"]) == ("00007", "/photographs/a.jpg", 1)
    assert (ok["image_height"], ok["image_width"]) == (11, 17)
    assert [ok[f"dropped_{name}"] for name in FILTERS] == list(range(len(FILTERS)))
    assert (ok["fetch_ms"], ok["encode_ms"], ok["rle_ms"]) == (1.0, 3.0, None)
    assert (ok["error_step"], ok["error"]) == (None, None)
    assert (failed["error_step"], failed["error"]) == ("decode", "cut off")
    assert failed["image_height"] is failed["sha256"] is failed["dropped_box_nms"] is None


def test_part_carries_the_identity_of_its_run():
    assert read_footer(io.BytesIO(encode_part(SHARD, results(), "abc"))).identity == "abc"


def test_footer_metadata_is_text():
    metadata = pq.read_metadata(io.BytesIO(encode_part(SHARD, results(), "id"))).metadata
    assert metadata is not None
    for value in metadata.values():
        value.decode("utf-8")


def test_part_is_the_same_bytes_when_results_come_in_another_order():
    part = encode_part(SHARD, results(), "id")
    assert encode_part(SHARD, results()[::-1], "id") == part
    assert images_part(encode_part(SHARD, results()[::-1], "id")) == images_part(part)


def test_image_id_twice_is_refused():
    with pytest.raises(AssertionError):
        encode_part(SHARD, [*results(), results()[0]], "id")


@pytest.mark.parametrize("none", [[], [FAILED], [image_result("a.jpg", random_masks(0))]])
def test_part_has_no_rows_when_no_image_has_a_mask(none: list[ImageResult]):
    part = encode_part(SHARD, none, "id")
    table = masks_of(part)
    assert len(table) == 0
    assert table.schema.equals(MASKS)
    assert len(read_footer(io.BytesIO(part)).images) == len(pq.read_table(io.BytesIO(images_part(part)))) == len(none)


def test_images_part_has_the_schema_and_rows_of_the_footer():
    part = encode_part(SHARD, results(), "id")
    table = pq.read_table(io.BytesIO(images_part(part)))
    assert table.schema.equals(IMAGES)
    assert table.equals(read_footer(io.BytesIO(part)).images)


def test_one_image_is_found_without_reading_all_row_groups():
    many = [image_result(f"{index:03d}.jpg", random_masks(60)) for index in range(3 * ROWS_PER_GROUP // 60)]
    metadata = pq.read_metadata(io.BytesIO(encode_part(SHARD, many, "id")))
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    assert len(groups) == 3
    ranges = [(group.column(0).statistics.min, group.column(0).statistics.max) for group in groups]
    assert sum(low <= "100.jpg" <= high for low, high in ranges) == 1
    for group in groups:
        assert [column.column_index for column in group.sorting_columns] == [0, 1]
        assert all(group.column(index).has_offset_index for index in range(group.num_columns))
        assert group.column(0).has_column_index
        assert group.column(0).compression == "ZSTD"


def test_footer_has_no_minimum_and_maximum_of_rles():
    metadata = pq.read_metadata(io.BytesIO(encode_part(SHARD, results(), "id"))).row_group(0)
    columns = {metadata.column(index).path_in_schema: metadata.column(index) for index in range(metadata.num_columns)}
    assert [name for name, column in columns.items() if not column.is_stats_set] == ["rle_counts"]


def test_rles_take_fewer_bytes_than_at_the_default_level():
    pool = mask_pool(200, 480, 640)
    masks = pool.draw(200, np.random.default_rng(0))
    part = encode_part(SHARD, [ImageResult("a.jpg", "/photographs/a.jpg", None, masks, {}, "ok")], "id")
    default = io.BytesIO()
    pq.write_table(masks_of(part).select(["rle_counts"]), default, compression="zstd", use_dictionary=False)
    column, at_default = (pq.read_metadata(io.BytesIO(data)).row_group(0) for data in (part, default.getvalue()))
    assert column.column(17).total_compressed_size < 0.95 * at_default.column(0).total_compressed_size


def test_bloom_filter_excludes_images_between_the_first_and_the_last(tmp_path: Path):
    """Older pyarrow cannot write one; the pinned version can."""
    path = tmp_path / "part.parquet"
    path.write_bytes(encode_part(SHARD, results(), "id"))
    probe = f"SELECT bloom_filter_excludes FROM parquet_bloom_probe('{path}', 'image_id', '%s')"
    assert query(probe % "not there.jpg") == [(True,)]
    assert query(probe % "é.jpg") == [(False,)]


def test_duckdb_reads_both_tables_when_the_run_is_halfway(tmp_path: Path):
    """Parts with rows and without, images parts behind masks parts, and no part at all for the other shards."""
    write_run(tmp_path, {"00007": encode_part(SHARD, results(), "id"), "00009": encode_part(SHARD, [FAILED], "id")})
    (tmp_path / "images" / "part-00009.parquet").unlink()
    masks, images = tmp_path / "masks" / "*.parquet", tmp_path / "images" / "*.parquet"
    total = random_masks(2, seed=1).sum() + random_masks(3, seed=2).sum()
    assert query(f"SELECT count(*), sum(area) FROM '{masks}'") == [(5, total)]
    assert query(f"SELECT mask_id FROM '{masks}' WHERE image_id = 'é.jpg' ORDER BY 1") == [(0,), (1,)]
    assert query(f"SELECT image_id, error FROM '{images}' WHERE error IS NOT NULL") == [("b/broken.jpg", "cut off")]


def test_pyarrow_dataset_reads_both_tables(tmp_path: Path):
    write_run(tmp_path, {"00007": encode_part(SHARD, results(), "id"), "00009": encode_part(SHARD, [FAILED], "id")})
    masks = ds.dataset(tmp_path / "masks")
    assert masks.schema.equals(MASKS)
    assert masks.to_table(filter=pc.field("image_id") == "a.jpg")["mask_id"].to_pylist() == [0, 1, 2]
    assert ds.dataset(tmp_path / "images").count_rows() == 5


def test_attempt_is_recorded():
    again = replace(FAILED, attempt=3)
    assert read_footer(io.BytesIO(encode_part(SHARD, [again], "id"))).images["attempt"].to_pylist() == [3]
