"""SA-1B files: field for field as published, and read back by our reader and by pycocotools."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco

from maskmill.annotations import open_annotations
from maskmill.annotations.sa1b import sa1b_format
from tests.annotations.exporting import HEIGHT, NAMES, WIDTH, export, make_run, masks_of, write_photographs

# The published description of the format, as types.
IMAGE_FIELDS = {"image_id": int, "width": int, "height": int, "file_name": str}
MASK_FIELDS = {
    "id": int,
    "segmentation": dict,
    "bbox": list,
    "area": int,
    "predicted_iou": float,
    "stability_score": float,
    "crop_box": list,
    "point_coords": list,
}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    write_photographs(tmp_path / "photographs")
    make_run(tmp_path / "photographs", tmp_path / "out")
    return tmp_path / "out"


def test_fields_are_the_published_ones(out: Path, tmp_path: Path):
    export(out, tmp_path / "sa1b", sa1b_format())
    contents = [json.loads(path.read_text()) for path in sorted((tmp_path / "sa1b").rglob("*.json"))]
    assert len(contents) == len(NAMES)
    for content in contents:
        assert content.keys() == {"image", "annotations"}
        assert {name: type(value) for name, value in content["image"].items()} == IMAGE_FIELDS
        for mask in content["annotations"]:
            assert {name: type(value) for name, value in mask.items()} == MASK_FIELDS
            assert mask["segmentation"].keys() == {"size", "counts"}
            assert mask["area"] == coco.area(mask["segmentation"])
            x, y, w, h = coco.toBbox(mask["segmentation"])
            assert mask["bbox"] == [x, y, w - 1, h - 1]
    ids = [mask["id"] for content in contents for mask in content["annotations"]]
    assert sorted(ids) == list(range(1, len(ids) + 1))


def test_our_reader_reads_images_that_differ_in_their_extension_only(out: Path, tmp_path: Path):
    selection = export(out, tmp_path / "sa1b", sa1b_format(), "copy")
    assert selection.renamed == 1
    assert (tmp_path / "sa1b/a#2.json").is_file()
    images = open_annotations(tmp_path / "sa1b")
    found = {images[i].image_id: images[i] for i in range(len(images))}
    for image in selection.images():
        read = found[image.stem]
        assert [read.decode(k).tolist() for k in range(len(read))] == masks_of(image.image_id).tolist()
        assert read.read_pixels().shape == (HEIGHT, WIDTH, 3)


def test_pycocotools_decodes_the_masks(out: Path, tmp_path: Path):
    export(out, tmp_path / "sa1b", sa1b_format(), where="mask_id = 1 AND image_id = 'a.png'")
    (path,) = (tmp_path / "sa1b").rglob("*.json")
    (mask,) = json.loads(path.read_text())["annotations"]
    assert np.array_equal(coco.decode(mask["segmentation"]), masks_of("a.png")[1])
