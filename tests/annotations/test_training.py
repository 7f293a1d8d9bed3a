"""Annotated images for the trainer: layers, sizes, memory, and images that cannot be used."""

from __future__ import annotations

import json
import logging
import pickle
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from maskmill.annotations import open_annotations
from maskmill.annotations.layers import layer_masks
from maskmill.annotations.records import AnnotatedImage, annotated_image
from maskmill.annotations.training import TrainingImages, to_labelled
from maskmill.filters import rle
from maskmill.model.frame import Frame
from maskmill.model.training.data import TrainingDataError
from tests.annotations.writing import SIZES, coco_content, png, write_coco, write_photographs, write_sa1b

Mask = NDArray[np.bool_]


def _image(masks: list[Mask], annotators: list[int] | None = None, crowds: list[bool] | None = None) -> AnnotatedImage:
    height, width = masks[0].shape
    data = png(np.zeros((height, width, 3), np.uint8))
    return annotated_image("a", "a", (height, width), [rle.encode(m) for m in masks], lambda: data, annotators, crowds)


def _segments(maps_AHW: NDArray[np.int32]) -> list[bytes]:
    return [(map_HW == label).tobytes() for map_HW in maps_AHW for label in np.unique(map_HW) if label]


mask_lists = array_shapes(min_dims=3, max_dims=3, max_side=6).flatmap(lambda shape: arrays(np.bool_, shape)).map(list)


@settings(deadline=None)
@given(mask_lists)
def test_layering_gives_every_mask_back_once(masks: list[Mask]):
    layered = layer_masks(masks, *masks[0].shape)
    assert sorted(_segments(layered)) == sorted(mask.tobytes() for mask in masks if mask.any())
    assert layered.any(axis=(1, 2)).all()  # no map is empty


@settings(deadline=None)
@given(mask_lists, st.data())
def test_training_gets_every_mask_or_one_that_is_identical(masks: list[Mask], data: st.DataObject):
    annotators = data.draw(st.lists(st.integers(0, 2), min_size=len(masks), max_size=len(masks)))
    crowds = data.draw(st.lists(st.booleans(), min_size=len(masks), max_size=len(masks)))
    labelled = to_labelled(_image(masks, annotators, crowds), 1024)
    wanted = {
        (annotator, mask.tobytes())
        for mask, annotator, crowd in zip(masks, annotators, crowds, strict=True)
        if mask.any() and not crowd
    }
    found = [] if labelled is None else _segments(labelled.maps_AHW)
    assert sorted(found) == sorted(mask for _, mask in wanted)


def test_the_largest_masks_come_first_and_maps_are_few():
    whole, part, other = (np.zeros((8, 8), np.bool_) for _ in range(3))
    whole[:, :6], part[2:4, 2:4], other[:, 6:] = True, True, True
    labelled = to_labelled(_image([part, other, whole]), 1024)
    assert labelled is not None
    assert [sorted(np.unique(map_HW[map_HW > 0], return_counts=True)[1]) for map_HW in labelled.maps_AHW] == [
        [16, 48],
        [4],
    ]


def test_a_large_photograph_is_reduced_with_its_masks():
    mask_HW = np.zeros((300, 1201), np.bool_)
    mask_HW[100:200, 400:800] = True
    pixels_HW3 = np.where(mask_HW[..., None], 200, 50).astype(np.uint8).repeat(3, axis=2)
    data = png(pixels_HW3)
    image = annotated_image("a", "a", (300, 1201), [rle.encode(mask_HW)], lambda: data)
    labelled = to_labelled(image, 400)
    assert labelled is not None
    assert labelled.pixels_HW3.shape == (100, 400, 3)
    assert np.array_equal(labelled.pixels_HW3, Frame(300, 1201, 400).resize(pixels_HW3)), "as at inference"
    assert labelled.maps_AHW.shape == (1, 100, 400)
    # The mask still lies on what is bright, but for the pixels of its border.
    differs_hw = (labelled.pixels_HW3[..., 0] > 125) != (labelled.maps_AHW[0] > 0)
    assert np.count_nonzero(differs_hw) < 0.02 * np.count_nonzero(labelled.maps_AHW)


def test_a_mask_that_vanishes_when_the_photograph_is_reduced_is_left_out():
    speck_HW = np.zeros((100, 100), np.bool_)
    speck_HW[0, 0] = True
    assert to_labelled(_image([speck_HW]), 10) is None


@dataclass
class Counted:
    """Annotated images of which it is known how often they were read."""

    images: list[AnnotatedImage]
    read: int = 0
    name: str = "counted"

    def __len__(self) -> int:
        return len(self.images)

    def image_id(self, index: int) -> str:
        return self.images[index].image_id

    def __getitem__(self, index: int, /) -> AnnotatedImage:
        self.read += 1
        return self.images[index]


def test_images_are_read_once_while_there_is_room():
    mask_HW = np.ones((10, 10), np.bool_)
    counted = Counted([_image([mask_HW]) for _ in range(3)])
    images = TrainingImages(counted, cache_bytes=2 * (300 + 100))  # pixels and a map of bytes, of two images
    first = images[0]
    for index in (0, 1, 1, 0):
        assert np.array_equal(images[index].maps_AHW, first.maps_AHW)
    assert counted.read == 2
    for _ in range(2):
        assert images[2].maps_AHW.all()
    assert counted.read == 4


def test_labels_are_kept_when_there_are_more_than_a_byte_holds():
    masks = [np.zeros((20, 20), np.bool_) for _ in range(400)]
    for k, mask_HW in enumerate(masks):
        mask_HW.flat[k] = True
    images = TrainingImages(Counted([_image(masks)]))
    for _ in range(2):
        assert len(np.unique(images[0].maps_AHW)) == 400


def test_a_set_travels_to_another_process_without_what_it_has_read(tmp_path: Path):
    large_HW3 = np.random.default_rng(0).integers(0, 255, (200, 300, 3), np.uint8)
    (tmp_path / "large.jpg").write_bytes(png(large_HW3))
    cv2.imwrite(str(tmp_path / "large.seg0.png"), np.ones((200, 300), np.uint8))
    images = TrainingImages(open_annotations(tmp_path))
    assert np.array_equal(images[0].pixels_HW3, large_HW3)
    sent = pickle.dumps(images)
    assert len(sent) < 10_000
    assert np.array_equal(pickle.loads(sent)[0].pixels_HW3, large_HW3)


def test_images_without_masks_are_passed_over(tmp_path: Path):
    write_photographs(tmp_path)
    content = coco_content()
    content["annotations"] = [annotation for annotation in content["annotations"] if annotation["image_id"] == 11]
    (tmp_path / "a.json").write_text(json.dumps(content))
    images = TrainingImages(open_annotations(tmp_path / "a.json"))
    assert [images[i].pixels_HW3.shape[:2] for i in range(2)] == [SIZES["b"], SIZES["b"]]


def test_a_set_is_refused_when_no_image_has_masks(tmp_path: Path):
    write_photographs(tmp_path)
    (tmp_path / "a.json").write_text(json.dumps(coco_content() | {"annotations": []}))
    with pytest.raises(TrainingDataError, match=r"a\.json: no image with masks"):
        TrainingImages(open_annotations(tmp_path / "a.json"))[0]


def test_a_damaged_photograph_is_passed_over_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    images = TrainingImages(open_annotations(write_coco(tmp_path)))
    (tmp_path / "ü 1.jpg").write_bytes(b"damaged")
    with caplog.at_level(logging.WARNING):
        assert images[0].pixels_HW3.shape[:2] == SIZES["b"]
    assert "ü 1.jpg" in caplog.text


def test_training_ends_when_all_photographs_are_damaged(tmp_path: Path):
    images = TrainingImages(open_annotations(write_sa1b(tmp_path)))
    for path in tmp_path.glob("*.jpg"):
        path.unlink()
    with pytest.raises(TrainingDataError, match=r"2 images in a row cannot be used, the last one: .*No such file"):
        images[0]
