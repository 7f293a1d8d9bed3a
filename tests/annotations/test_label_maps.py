"""Label maps: annotators, numbers and files that do not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskmill.annotations import AnnotationError, open_annotations
from maskmill.annotations.training import TrainingImages
from tests.annotations.writing import SIZES, masks, write_label_maps

SIZE = SIZES["b"]


def _write_map(folder: Path, number: int, map_HW: np.ndarray) -> None:
    Image.fromarray(map_HW).save(folder / f"b.seg{number}.png")


def test_each_map_is_an_annotator_and_each_number_a_segment(tmp_path: Path):
    halves_HW = np.full(SIZE, 300, np.uint16)  # more numbers than fit a byte
    halves_HW[3:] = 7
    write_label_maps(tmp_path)
    _write_map(tmp_path, 1, halves_HW)
    image = open_annotations(tmp_path)[0]
    assert image.annotator_K.tolist() == [0, 0, 0, 1, 1]
    assert np.array_equal(image.decode(3), halves_HW == 7)
    assert np.array_equal(image.decode(4), halves_HW == 300)


def test_training_keeps_one_map_per_annotator(tmp_path: Path):
    write_label_maps(tmp_path)
    _write_map(tmp_path, 1, np.full(SIZE, 7, np.uint8))
    image = TrainingImages(open_annotations(tmp_path))[0]
    assert len(image.maps_AHW) == 2
    assert [len(np.unique(map_HW)) for map_HW in image.maps_AHW] == [3, 1]
    assert (image.maps_AHW > 0).all()


def test_zero_is_not_labelled(tmp_path: Path):
    write_label_maps(tmp_path)
    map_HW = np.zeros(SIZE, np.uint8)
    map_HW[2:4, 1:5] = 9
    _write_map(tmp_path, 1, map_HW)
    annotated = open_annotations(tmp_path)[0]
    assert annotated.annotator_K.tolist() == [0, 0, 0, 1]
    assert np.array_equal(annotated.decode(3), map_HW == 9)
    assert np.array_equal(TrainingImages(open_annotations(tmp_path))[0].maps_AHW[1] > 0, map_HW == 9)


def test_a_map_with_a_palette_is_read_by_its_numbers(tmp_path: Path):
    write_label_maps(tmp_path)
    path = tmp_path / "b.seg0.png"
    numbers = Image.open(path)
    coloured = Image.fromarray(np.asarray(numbers))
    coloured.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0, 200, 0, 0])
    coloured.save(path)
    image = open_annotations(tmp_path)[0]
    assert [image.decode(k).tolist() for k in range(3)] == [mask.tolist() for mask in masks("b")]


def test_maps_are_refused_when_their_photograph_is_missing(tmp_path: Path):
    write_label_maps(tmp_path)
    (tmp_path / "b.jpg").unlink()
    with pytest.raises(AnnotationError, match=r"b\.seg0\.png: its photograph .*b\.jpg is missing"):
        open_annotations(tmp_path)


def test_a_photograph_is_refused_when_it_has_no_maps_beside_it(tmp_path: Path):
    write_label_maps(tmp_path)
    (tmp_path / "b.seg0.png").unlink()
    with pytest.raises(AnnotationError, match=r"b\.jpg: no b\.seg0\.png beside it"):
        open_annotations(tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (np.zeros((*SIZE, 3), np.uint8), r"b\.seg1\.png: not one channel"),
        (np.zeros((5, 5), np.uint8), r"b\.seg1\.png: its size differs from that of b\.seg0\.png"),
    ],
)
def test_a_map_is_refused_when_it_does_not_fit(tmp_path: Path, content: np.ndarray, reason: str):
    write_label_maps(tmp_path)
    _write_map(tmp_path, 1, content)
    images = open_annotations(tmp_path)
    with pytest.raises(AnnotationError, match=reason):
        images[0]


def test_a_map_is_refused_when_it_is_damaged(tmp_path: Path):
    write_label_maps(tmp_path)
    path = tmp_path / "b.seg0.png"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(AnnotationError, match=r"b\.seg0\.png: not a readable label map"):
        open_annotations(tmp_path)[0]
