"""Data sets as `datasets` loads them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools import mask as coco

from maskmill.annotations.hugging_face import Layout, hugging_face_format
from tests.annotations.exporting import NAMES, export, make_run, masks_of, picture, write_photographs


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_DATASETS_OFFLINE", True)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    write_photographs(tmp_path / "photographs")
    make_run(tmp_path / "photographs", tmp_path / "out", images_per_shard=3)
    return tmp_path / "out"


def _load(folder: Path, *config: str) -> Any:
    return datasets.load_dataset(str(folder), *config, split="train")


def test_datasets_loads_one_row_per_image_with_its_masks(out: Path, tmp_path: Path):
    export(out, tmp_path / "hf", hugging_face_format("nested", 4), "copy")
    assert len(list((tmp_path / "hf/data").iterdir())) == 2
    rows = _load(tmp_path / "hf")
    assert rows.features["image"] == datasets.Image()
    assert rows["image_id"] == list(NAMES)
    for name, row in zip(NAMES, rows, strict=True):
        masks = [coco.decode(mask["segmentation"]) for mask in row["annotations"]]
        assert np.array_equal(np.array(masks, np.bool_).reshape(masks_of(name).shape), masks_of(name))
        assert np.array_equal(np.asarray(row["image"]), np.asarray(Image.open(io.BytesIO(picture(name)))))


def test_datasets_loads_both_tables(out: Path, tmp_path: Path):
    export(out, tmp_path / "hf", hugging_face_format("tables", 4), "copy")
    masks, images = _load(tmp_path / "hf", "masks"), _load(tmp_path / "hf", "images")
    assert images["image_id"] == list(NAMES)
    assert images.features["image"] == datasets.Image()
    assert np.asarray(images[1]["image"]).shape == np.asarray(Image.open(io.BytesIO(picture(NAMES[1])))).shape
    of_image = [row for row in masks if row["image_id"] == "a.png"]
    assert [row["mask_id"] for row in of_image] == [0, 1, 2, 3]
    decoded = [
        coco.decode({"size": [row["image_height"], row["image_width"]], "counts": row["rle_counts"]})
        for row in of_image
    ]
    assert np.array_equal(np.array(decoded, np.bool_), masks_of("a.png"))


def test_images_are_missing_when_they_are_not_wanted(out: Path, tmp_path: Path):
    export(out, tmp_path / "hf", hugging_face_format())
    rows = _load(tmp_path / "hf")
    assert rows.column_names == ["image_id", "height", "width", "annotations"]
    assert rows["image_id"] == list(NAMES)


@pytest.mark.parametrize("layout", ["nested", "tables"])
def test_files_have_a_schema_and_no_rows_when_the_selection_is_empty(out: Path, tmp_path: Path, layout: Layout):
    export(out, tmp_path / "hf", hugging_face_format(layout), "copy", where="area < 0")
    for path in (tmp_path / "hf").rglob("*.parquet"):
        assert path.name == "train-00000-of-00001.parquet"
        assert len(pq.read_table(path)) == 0
        assert "image_id" in pq.read_schema(path).names


def test_images_are_split_into_row_groups_by_their_bytes(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("maskmill.annotations.hugging_face.GROUP_BYTES", 2 * len(picture(NAMES[0])) - 100)
    export(out, tmp_path / "hf", hugging_face_format(), "copy")
    (path,) = (tmp_path / "hf/data").iterdir()
    assert pq.ParquetFile(path).num_row_groups == len(NAMES) // 2
