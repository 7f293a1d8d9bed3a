"""What every format has in common: the masks that were written are the masks that are read."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from maskmill.annotations import AnnotatedImages, AnnotationError, open_annotations
from maskmill.annotations.training import TrainingImages
from maskmill.model.training.data import LabelledImage
from tests.annotations.writing import SIZES, WRITERS, masks, pixels


@pytest.fixture(params=WRITERS.values(), ids=list(WRITERS))
def write(request: pytest.FixtureRequest) -> Callable[[Path], Path]:
    return request.param


def _assert_as_written(images: AnnotatedImages) -> None:
    assert len(images) == len(SIZES)
    by_name = {Path(images[i].image_id).name.removesuffix(".jpg"): images[i] for i in range(len(images))}
    assert by_name.keys() == SIZES.keys()
    for name, image in by_name.items():
        assert (image.height, image.width) == SIZES[name]
        assert len(image) == 3
        for k, expected_HW in enumerate(masks(name)):
            assert np.array_equal(image.decode(k), expected_HW)
        assert np.array_equal(image.read_pixels(), pixels(name))
        assert not image.crowd_K.any()
        assert not image.annotator_K.any()


def test_masks_and_pixels_come_back_as_they_were_written(write: Callable[[Path], Path], tmp_path: Path):
    _assert_as_written(open_annotations(write(tmp_path)))


def test_annotations_travel_to_another_process_when_some_were_read(write: Callable[[Path], Path], tmp_path: Path):
    images = open_annotations(write(tmp_path))
    first = images[0]
    first.read_pixels()
    _assert_as_written(pickle.loads(pickle.dumps(images)))
    again = pickle.loads(pickle.dumps(first))
    assert np.array_equal(again.read_pixels(), first.read_pixels())


def test_annotations_are_found_when_the_path_is_relative(
    write: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = write(tmp_path)
    monkeypatch.chdir(path.parent)
    images = open_annotations(Path(path.name))
    _assert_as_written(images)
    assert images.name == path.name


def test_a_missing_photograph_is_named_when_its_pixels_are_asked_for(write: Callable[[Path], Path], tmp_path: Path):
    images = open_annotations(write(tmp_path))
    (photograph,) = tmp_path.rglob("ü 1.jpg")
    photograph.unlink()
    seen = [images[i] for i in range(2)]
    with pytest.raises(AnnotationError, match=r"ü 1.*(No such file|missing)"):
        [image.read_pixels() for image in seen]


def test_a_photograph_of_another_size_is_refused(write: Callable[[Path], Path], tmp_path: Path):
    images = open_annotations(write(tmp_path))
    one, other = (next(tmp_path.rglob(f"{name}.jpg")) for name in SIZES)
    other.write_bytes(one.read_bytes())
    with pytest.raises(AnnotationError, match="5 x 7 pixels, but its annotations are for 11 x 6"):
        [images[i].read_pixels() for i in range(2)]


def test_training_takes_every_format(write: Callable[[Path], Path], tmp_path: Path):
    images = TrainingImages(open_annotations(write(tmp_path)))
    read = {image.pixels_HW3.shape[:2]: image for image in map(images.__getitem__, range(len(images)))}
    for name, size in SIZES.items():
        image = read[size]
        assert np.array_equal(image.pixels_HW3, pixels(name))
        assert image.maps_AHW.dtype == np.int32
        assert _segments(image) == {mask.tobytes() for mask in masks(name)}
        assert len(image.maps_AHW) == 1


def _segments(image: LabelledImage) -> set[bytes]:
    return {(map_HW == label).tobytes() for map_HW in image.maps_AHW for label in np.unique(map_HW) if label}
