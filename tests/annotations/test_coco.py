"""COCO instances: polygons, crowds, where photographs are looked for, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskmill.annotations import AnnotatedImages, AnnotationError, open_annotations
from tests.annotations.writing import SIZES, coco_content, masks, uncompressed, write_photographs

HEIGHT, WIDTH = SIZES["ü 1"]


def _open(folder: Path, content: Any, images: Path | None = None) -> AnnotatedImages:
    path = folder / "instances_val2017.json"
    path.write_text(json.dumps(content))
    return open_annotations(path, images)


def _with_segmentation(segmentation: Any, **fields: Any) -> dict[str, Any]:
    """The two pictures, with a single annotation on the first."""
    annotation = {"id": 7, "image_id": 10, "segmentation": segmentation} | fields
    return coco_content() | {"annotations": [annotation]}


def test_polygons_are_the_union_of_their_parts(tmp_path: Path):
    write_photographs(tmp_path)
    parts = [[1, 1, 4, 1, 4, 3, 1, 3], [0, 5, 2, 5, 2, 7, 0, 7]]
    image = _open(tmp_path, _with_segmentation(parts))[0]
    expected_HW = np.zeros((HEIGHT, WIDTH), np.bool_)
    expected_HW[1:3, 1:4] = expected_HW[5:7, 0:2] = True
    assert np.array_equal(image.decode(0), expected_HW)


def test_a_polygon_is_cut_off_where_it_leaves_the_image(tmp_path: Path):
    write_photographs(tmp_path)
    image = _open(tmp_path, _with_segmentation([[-2, -2, 3, -2, 3, 3, -2, 3]]))[0]
    expected_HW = np.zeros((HEIGHT, WIDTH), np.bool_)
    expected_HW[:3, :3] = True
    assert np.array_equal(image.decode(0), expected_HW)


@pytest.mark.parametrize(
    "segmentation",
    [[], None, [[]], [[1, 1, 3, 3]], [[1, 1, 1, 1, 1, 1]], {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}],
)
def test_a_mask_is_left_out_when_it_has_no_area(tmp_path: Path, segmentation: Any):
    write_photographs(tmp_path)
    assert len(_open(tmp_path, _with_segmentation(segmentation))[0]) == 0


def test_crowds_are_marked(tmp_path: Path):
    write_photographs(tmp_path)
    content = coco_content()
    for annotation in content["annotations"]:
        annotation["iscrowd"] = int(annotation["id"] == 1)
    # A mask before the crowd has no area: the marks must not slip.
    content["annotations"].insert(0, {"id": 9, "image_id": 10, "segmentation": [], "iscrowd": 0})
    image = _open(tmp_path, content)[0]
    assert image.crowd_K.tolist() == [False, True, False]
    assert np.array_equal(image.decode(1), masks("ü 1")[1])


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ([[1, 1, 4, 1, 4, 4, 1]], "a polygon of 7 numbers"),
        ([[1, 1, 4, 1, 4, "four"]], "not a list of numbers"),
        ([1, 1, 4, 1, 4, 4], "not a list of numbers"),
        ([[1, 1, 4, 1, float("nan"), 4]], "not finite"),
        ([[1, 1, 4, 1, 4, 1e9]], "reaches from y 1 to 1e\\+09 in an image of 7"),
        ({"size": [WIDTH, HEIGHT], "counts": [HEIGHT * WIDTH]}, r"size \[5, 7\] for an image of size \[7, 5\]"),
        ({"size": [HEIGHT, WIDTH], "counts": [3, 4]}, "covers 7 pixels of 35"),
        ({"size": [HEIGHT, WIDTH], "counts": [40, -5]}, "list of non-negative integers"),
        ({"size": [HEIGHT, WIDTH], "counts": "0"}, "covers 0 pixels of 35"),
        ({"size": [HEIGHT, WIDTH], "counts": "ü"}, "characters that are not COCO's"),
        ("polygon", "neither polygons nor an RLE"),
    ],
)
def test_an_image_is_refused_in_one_line_when_a_mask_of_it_is_damaged(tmp_path: Path, segmentation: Any, reason: str):
    write_photographs(tmp_path)
    images = _open(tmp_path, _with_segmentation(segmentation))
    with pytest.raises(AnnotationError, match=reason) as raised:
        images[0]
    assert "ü 1.jpg" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert len(images[1]) == 0  # the other image is none the worse


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"images": []}, "no images in it"),
        ({"images": [{"file_name": "b.jpg"}]}, "without id"),
        ({"images": [{"id": 1}]}, "without file_name"),
        ({"images": ["b.jpg"]}, "'images' is not a list of entries"),
        ({"annotations": {}}, "'annotations' is not a list of entries"),
        ({"annotations": [{"image_id": 10, "caption": "a cat"}]}, "no annotation has a segmentation.*caption"),
        ({"images": 2 * [{"id": 1, "file_name": "b.jpg"}]}, "same id"),
    ],
)
def test_a_file_is_refused_when_it_is_no_coco_with_masks(tmp_path: Path, change: dict[str, Any], reason: str):
    write_photographs(tmp_path)
    with pytest.raises(AnnotationError, match=reason):
        _open(tmp_path, coco_content() | change)


@pytest.mark.parametrize("size", [{}, {"height": 0, "width": 5}, {"height": "7", "width": 5}, {"height": 10**6}])
def test_an_image_is_refused_when_its_size_makes_no_sense(tmp_path: Path, size: dict[str, Any]):
    write_photographs(tmp_path)
    content = coco_content()
    image = content["images"][0]
    content["images"][0] = {"id": image["id"], "file_name": image["file_name"], "width": 10**6} | size
    images = _open(tmp_path, content)
    with pytest.raises(AnnotationError, match=r"ü 1\.jpg: (no height and width|.*the limit is)"):
        images[0]


def test_annotations_of_images_that_are_not_listed_are_left_out(tmp_path: Path):
    write_photographs(tmp_path)
    content = coco_content()
    del content["images"][0]
    images = _open(tmp_path, content)
    assert [image.image_id for image in images] == ["b.jpg"]
    assert len(images[0]) == 3


@pytest.mark.parametrize("folder", [".", "images", "val2017", "instances_val2017", "../val2017", "../images/val2017"])
def test_photographs_are_found_near_the_file(tmp_path: Path, folder: str):
    annotations = tmp_path / "annotations"
    annotations.mkdir()
    write_photographs((annotations / folder).resolve())
    assert _open(annotations, coco_content())[1].read_pixels().shape[:2] == SIZES["b"]


def test_photographs_are_found_when_names_have_the_folder_of_the_split(tmp_path: Path):
    write_photographs(tmp_path / "elsewhere")
    content = coco_content()
    for image in content["images"]:
        image["file_name"] = f"val2017/{image['file_name']}"
    images = _open(tmp_path, content, images=tmp_path / "elsewhere")
    assert images[1].image_id == "val2017/b.jpg"
    assert images[1].read_pixels().shape[:2] == SIZES["b"]


def test_photographs_are_found_when_entries_have_addresses_only_as_in_lvis(tmp_path: Path):
    write_photographs(tmp_path / "train2017")
    content = coco_content(uncompressed)
    for image in content["images"]:
        image["coco_url"] = f"http://images.example.org/train2017/{image.pop('file_name')}"
    images = _open(tmp_path, content)
    assert [image.image_id for image in images] == ["train2017/ü 1.jpg", "train2017/b.jpg"]
    assert [len(image.read_pixels()) for image in images] == [7, 6]


def test_a_file_is_refused_when_its_photographs_are_nowhere(tmp_path: Path):
    with pytest.raises(AnnotationError, match=r"such as ü 1\.jpg, are not found"):
        _open(tmp_path, coco_content())
    (tmp_path / "empty").mkdir()
    with pytest.raises(AnnotationError, match=r"such as ü 1\.jpg, are not in .*empty"):
        _open(tmp_path, coco_content(), images=tmp_path / "empty")
