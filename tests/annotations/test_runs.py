"""Runs as annotations: tars, failed images, retries, runs that are not finished."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from maskmill.annotations import AnnotatedImage, AnnotationError, open_annotations
from maskmill.model.errors import MaskmillError
from maskmill.pipeline.config import DEFAULT_DECODING
from maskmill.pipeline.errors import ObjectError
from maskmill.pipeline.images import decode_image
from maskmill.pipeline.parts import masks_key
from tests import runs
from tests.fakes import picture

PICTURES = {f"p{seed}.png": picture(seed) for seed in range(5)}


def _write_pictures(folder: Path) -> None:
    folder.mkdir()
    for name, data in PICTURES.items():
        (folder / name).write_bytes(data)


def _assert_fits(image: AnnotatedImage) -> None:
    """A FakeEngine's masks: of each channel, where it is above its mean."""
    pixels_HW3 = image.read_pixels()
    assert np.array_equal(pixels_HW3, decode_image(PICTURES[Path(image.image_id).name], DEFAULT_DECODING).pixels)
    for k in range(3):
        assert np.array_equal(image.decode(k), pixels_HW3[..., k] > pixels_HW3[..., k].mean())


def _ids(out: Path) -> list[str]:
    images = open_annotations(out)
    return [images[i].image_id for i in range(len(images))]


def test_images_that_failed_are_left_out_and_come_with_their_retry(tmp_path: Path):
    photographs, out = tmp_path / "photographs", tmp_path / "out"
    _write_pictures(photographs)
    (photographs / "p1.png").write_bytes(b"broken")
    runs.run(photographs, out)
    assert _ids(out) == ["p0.png", "p2.png", "p3.png", "p4.png"]
    (photographs / "p1.png").write_bytes(PICTURES["p1.png"])
    runs.retry(out)
    retried = open_annotations(out)
    images = [retried[i] for i in range(len(retried))]
    assert sorted(image.image_id for image in images) == sorted(PICTURES)
    for image in images:
        _assert_fits(image)


def test_images_in_tars_are_read_in_any_order(tmp_path: Path):
    source = tmp_path / "tars"
    source.mkdir()
    names = list(PICTURES)
    for tar_name, members in (("a.tar", names[:3]), ("b.tar", names[3:])):
        with tarfile.open(source / tar_name, "w") as tar:
            for name in members:
                info = tarfile.TarInfo(name)
                info.size = len(PICTURES[name])
                tar.addfile(info, io.BytesIO(PICTURES[name]))
    runs.run(source, tmp_path / "out")
    images = open_annotations(tmp_path / "out")
    expected = [f"{'a' if i < 3 else 'b'}.tar/{name}" for i, name in enumerate(names)]
    assert [image.image_id for image in images] == expected
    for index in (0, 2, 2, 1, 4, 0, 3):
        _assert_fits(images[index])


def test_a_run_in_progress_has_the_images_that_are_done(tmp_path: Path):
    photographs, out = tmp_path / "photographs", tmp_path / "out"
    _write_pictures(photographs)
    runs.begin(photographs, out)
    with pytest.raises(AnnotationError, match="no image of this run is done yet"):
        open_annotations(out)
    runs.run(photographs, out)
    (out / masks_key("00001")).unlink()
    assert _ids(out) == ["p0.png", "p1.png", "p4.png"]


def test_a_run_is_refused_when_its_images_are_gone(tmp_path: Path):
    photographs, out = tmp_path / "photographs", tmp_path / "out"
    _write_pictures(photographs)
    runs.run(photographs, out)
    photographs.rename(tmp_path / "moved")
    with pytest.raises(
        MaskmillError,
        match=r"photographs: the images of the run are no longer there: .* give their new place with --source",
    ):
        open_annotations(out)


def test_a_part_is_named_when_it_is_damaged(tmp_path: Path):
    photographs, out = tmp_path / "photographs", tmp_path / "out"
    _write_pictures(photographs)
    runs.run(photographs, out)
    images = open_annotations(out)
    part = out / masks_key("00000")
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(AnnotationError, match=r"masks/part-00000\.parquet: "):
        images[0]
    assert len(images[4]) == 3
    with pytest.raises(ObjectError, match=r"masks/part-00000\.parquet: damaged: "):
        open_annotations(out)
