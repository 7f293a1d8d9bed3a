"""Which format a path is taken for, and what is said where it is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from maskmill.annotations import AnnotationError, open_annotations
from maskmill.annotations.coco import CocoInstances
from maskmill.annotations.label_maps import LabelMapFolder
from maskmill.annotations.runs import RunImages
from maskmill.annotations.sa1b import Sa1bFolder
from tests.annotations.writing import (
    coco_content,
    write_coco,
    write_label_maps,
    write_photographs,
    write_run,
    write_sa1b,
)


def test_the_format_is_told_by_what_is_there(tmp_path: Path):
    assert isinstance(open_annotations(write_label_maps(tmp_path / "bsds")), LabelMapFolder)
    assert isinstance(open_annotations(write_sa1b(tmp_path / "sa1b")), Sa1bFolder)
    assert isinstance(open_annotations(write_run(tmp_path / "run")), RunImages)
    coco = write_coco(tmp_path / "coco")
    assert isinstance(open_annotations(coco), CocoInstances)
    assert isinstance(open_annotations(coco.parent), CocoInstances)
    assert isinstance(open_annotations(str(coco)), CocoInstances)


def test_one_file_of_sa1b_is_one_image(tmp_path: Path):
    images = open_annotations(write_sa1b(tmp_path) / "b.json")
    assert [image.image_id for image in images] == ["b"]


def test_sa1b_is_read_from_the_folders_of_several_archives(tmp_path: Path):
    write_sa1b(tmp_path / "sa_000000")
    write_sa1b(tmp_path / "sa_000001")
    images = open_annotations(tmp_path)
    assert [image.image_id for image in images] == [f"sa_00000{i}/{name}" for i in (0, 1) for name in ("b", "ü 1")]
    assert all(len(image.read_pixels()) for image in images)


def test_photographs_may_be_elsewhere(tmp_path: Path):
    for write in (write_label_maps, write_sa1b):
        folder = write(tmp_path / write.__name__)
        write_photographs(tmp_path / "photographs")
        for photograph in folder.glob("*.jpg"):
            photograph.unlink()
        images = open_annotations(folder, images=tmp_path / "photographs")
        assert [len(image.read_pixels()) for image in images] == [6, 7]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.json", "{", "not JSON"),
        ("a.json", "[" * 100_000, "not JSON"),
        ("a.json", "[]", "it holds no object"),
        ("a.json", '{"info": 1, "boxes": 2}', "its keys are info, boxes"),
        ("a.csv", "uri", "not a .json or .xml file"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, name: str, content: str, reason: str):
    (tmp_path / name).write_text(content)
    with pytest.raises(AnnotationError, match=reason):
        open_annotations(tmp_path / name)


def test_a_folder_is_refused_when_there_is_nothing_in_it_to_learn_from(tmp_path: Path):
    with pytest.raises(AnnotationError, match=r"nowhere: no such file or folder; expected photographs ID\.jpg"):
        open_annotations(tmp_path / "nowhere")
    write_photographs(tmp_path)
    with pytest.raises(AnnotationError, match="no annotations in this folder; expected photographs"):
        open_annotations(tmp_path)


def test_a_folder_is_refused_when_several_files_could_be_meant(tmp_path: Path):
    for name in ("train", "val"):
        (tmp_path / f"{name}.json").write_text(json.dumps(coco_content()))
    with pytest.raises(AnnotationError, match=r"several JSON files.*name one, such as .*train\.json"):
        open_annotations(tmp_path)


def test_a_folder_of_photographs_is_refused_when_it_does_not_exist(tmp_path: Path):
    with pytest.raises(AnnotationError, match="elsewhere: no such folder"):
        open_annotations(write_sa1b(tmp_path), images=tmp_path / "elsewhere")


def test_a_folder_of_photographs_is_refused_when_the_annotations_are_a_run(tmp_path: Path):
    with pytest.raises(AnnotationError, match="a run knows where its images were"):
        open_annotations(write_run(tmp_path), images=tmp_path)


def test_a_place_to_which_images_have_moved_is_refused_when_the_annotations_are_no_run(tmp_path: Path):
    with pytest.raises(AnnotationError, match="not the output of a run, and --source is only for runs: give --images"):
        open_annotations(write_sa1b(tmp_path), moved_to=str(tmp_path))


@pytest.mark.parametrize("damage", ["{", '{"image": 1, "annotations": []}', '{"image": {}, "annotations": [1]}'])
def test_one_file_of_sa1b_is_refused_when_it_is_damaged_and_the_others_are_read(tmp_path: Path, damage: str):
    images = open_annotations(write_sa1b(tmp_path))
    (tmp_path / "ü 1.json").write_text(damage)
    assert len(images[0]) == 3
    with pytest.raises(AnnotationError, match=r"ü 1\.json: not "):
        images[1]
