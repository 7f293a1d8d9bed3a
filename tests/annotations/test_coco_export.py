"""COCO files as the tools of COCO read them."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import faster_coco_eval
import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools.coco import COCO
from scipy.ndimage import binary_fill_holes

from maskmill.annotations import open_annotations
from maskmill.annotations.coco import coco_format
from tests.annotations.exporting import HEIGHT, NAMES, WIDTH, export, make_run, masks_of, write_photographs


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_photographs(folder / "photographs")
    make_run(folder / "photographs", folder / "out")
    return folder / "out"


def _load(reader: type[Any], path: Path) -> Any:
    with contextlib.redirect_stdout(io.StringIO()):
        return reader(str(path))


def _filled(mask_HW: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask without holes."""
    return np.asarray(binary_fill_holes(mask_HW))


@pytest.mark.parametrize("reader", [COCO, faster_coco_eval.COCO])
@pytest.mark.parametrize("segmentation", ["compressed", "uncompressed", "polygon"])
def test_tools_of_coco_read_the_masks(out: Path, tmp_path: Path, reader: type[Any], segmentation: Any):
    form = coco_format(segmentation)
    export(out, tmp_path, form)
    coco = _load(reader, tmp_path / "instances.json")
    assert [coco.imgs[n]["file_name"] for n in sorted(coco.imgs)] == list(NAMES)
    assert sorted(coco.imgs) == list(range(1, len(NAMES) + 1))
    assert sorted(coco.anns) == list(range(1, 4 * (len(NAMES) - 1) + 1))
    assert coco.cats == {1: {"id": 1, "name": "mask", "supercategory": ""}}
    for number, name in enumerate(NAMES, 1):
        assert (coco.imgs[number]["height"], coco.imgs[number]["width"]) == (HEIGHT, WIDTH)
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=[number]))
        assert len(annotations) == len(masks_of(name))
        for annotation, mask_HW in zip(annotations, masks_of(name), strict=True):
            expected = _filled(mask_HW) if segmentation == "polygon" else mask_HW
            assert np.array_equal(coco.annToMask(annotation), expected)
            rows, columns = mask_HW.any(axis=1).nonzero()[0], mask_HW.any(axis=0).nonzero()[0]
            assert annotation["bbox"] == [columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert annotation["area"] == mask_HW.sum()
            assert annotation["category_id"] == 1
            assert annotation["iscrowd"] == 0
    holes = sum(not np.array_equal(_filled(mask), mask) for name in NAMES for mask in masks_of(name))
    assert (form.lost["holes filled"] >= holes) == (segmentation == "polygon")


def test_our_reader_reads_the_export_with_its_images(out: Path, tmp_path: Path):
    export(out, tmp_path, coco_format(), images="copy")
    images = open_annotations(tmp_path / "instances.json")
    assert [images.image_id(i) for i in range(len(images))] == list(NAMES)
    for i, name in enumerate(NAMES):
        assert [images[i].decode(k).tolist() for k in range(len(images[i]))] == masks_of(name).tolist()
        assert images[i].read_pixels().shape == (HEIGHT, WIDTH, 3)


def test_file_is_valid_json_when_the_selection_is_empty(out: Path, tmp_path: Path):
    export(out, tmp_path, coco_format(), where="area < 0")
    assert json.loads((tmp_path / "instances.json").read_text())["images"] == []
    assert _load(COCO, tmp_path / "instances.json").anns == {}
