"""Annotations of every format as runs: the same masks to the byte, damage as rows, resuming, S3."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
from pycocotools import mask as coco

from maskmill.annotations import AnnotationError
from maskmill.annotations.importing import open_import, write_import
from maskmill.annotations.pairs import index_run, pair_images
from maskmill.annotations.selection import read_masks, select
from maskmill.evaluation.compare import compare_images
from maskmill.pipeline.config import PRESETS, RunConfig
from maskmill.pipeline.errors import RunMismatchError
from maskmill.pipeline.finished import open_finished_run
from maskmill.pipeline.ledger import Identity, open_run, reopen_run
from maskmill.pipeline.preview import overlays
from maskmill.pipeline.storage import open_storage
from maskmill.pipeline.verify import verify
from tests.annotations.exporting import FORMATS, NAMES, export, make_run, write_photographs
from tests.annotations.writing import SIZES, WRITERS, coco_content, masks
from tests.annotations.writing import write_photographs as write_two
from tests.kills import differences, kill_points, objects, strangers
from tests.runs import Tables

if TYPE_CHECKING:
    from testing.s3_servers import FaultProxy

READ = [name for name in WRITERS if name != "run"]


def import_(source: Path, out: str | Path, images: Path | None = None) -> None:
    write_import(open_import(source, images), open_storage(str(out), make=True))


def _written(folder: Path, name: str) -> Path:
    folder.mkdir()
    return WRITERS[name](folder)


def offences(out: str | Path) -> list[str]:
    return [offence for check in verify(open_storage(str(out))) for offence in check.offences]


@pytest.mark.parametrize("name", READ)
def test_imported_annotations_are_a_run(tmp_path: Path, name: str):
    source = _written(tmp_path / "source", name)
    import_(source, tmp_path / "out")
    assert offences(tmp_path / "out") == []
    run = open_finished_run(open_storage(str(tmp_path / "out")))
    assert run.settings["imported"]["annotations"] == str(source)
    found = {Path(image_id).stem: run[image_id] for image_id in run}
    assert found.keys() == SIZES.keys()
    for stem, image in found.items():
        assert (image.status, image.sha256) == ("ok", None)
        assert np.array_equal(image.masks, masks(stem))
        assert (image.predicted_iou == np.float32(0.9 if name == "SA-1B" else 1)).all()
    drawn = list(overlays(run.storage))
    assert [overlay.n_masks for overlay in drawn] == [3, 3]


@pytest.mark.parametrize("format_name", ["coco", "coco, uncompressed", "sa1b", "cvat"])
def test_export_of_an_imported_export_is_the_same_to_the_byte(tmp_path: Path, format_name: str):
    write_photographs(tmp_path / "photographs")
    make_run(tmp_path / "photographs", tmp_path / "out")
    export(tmp_path / "out", tmp_path / "first", FORMATS[format_name]())
    import_(tmp_path / "first", tmp_path / "imported", tmp_path / "photographs")
    export(tmp_path / "imported", tmp_path / "second", FORMATS[format_name]())
    first, second = (objects(open_storage(str(tmp_path / name))) for name in ("first", "second"))
    del first["_export"], second["_export"]
    assert differences(second, first) == []
    if format_name == "cvat":  # has no scores
        return
    original, imported = (Tables.of(open_storage(str(tmp_path / name))).masks for name in ("out", "imported"))
    assert imported == original


def test_counts_keep_their_bytes_when_another_encoder_would_write_others(tmp_path: Path):
    write_two(tmp_path)
    content = coco_content()
    height, width = SIZES["b"]
    runs: dict[str, Any] = {"size": [height, width], "counts": [3, 4, 0, 0, 0, 2, height * width - 9]}
    counts = cast(Any, coco.frPyObjects(cast(Any, runs), height, width))["counts"]
    shape: Any = {"size": [height, width], "counts": counts.decode()}
    content["annotations"] = [{"id": 1, "image_id": 11, "segmentation": shape}]
    (tmp_path / "instances.json").write_text(json.dumps(content))
    import_(tmp_path / "instances.json", tmp_path / "out")
    run = open_finished_run(open_storage(str(tmp_path / "out")))
    assert run["b.jpg"].rle_counts == (counts,)
    assert counts != coco.encode(np.asfortranarray(coco.decode(shape)))["counts"]


def test_lvis_is_imported_without_its_images(tmp_path: Path):
    content = coco_content()
    for image in content["images"]:
        image["coco_url"] = f"http://images.cocodataset.org/train2017/{image.pop('file_name')}"
    (tmp_path / "lvis.json").write_text(json.dumps(content))
    import_(tmp_path / "lvis.json", tmp_path / "out")
    assert offences(tmp_path / "out") == []
    assert list(open_finished_run(open_storage(str(tmp_path / "out")))) == ["train2017/b.jpg", "train2017/ü 1.jpg"]


def test_images_are_found_by_their_names_in_the_given_folder(tmp_path: Path):
    write_two(tmp_path / "val2017")
    content = coco_content()
    content["images"][0]["file_name"] = "../../val2017/ü 1.jpg"
    content["images"][1]["file_name"] = "val2017/b.jpg"
    (tmp_path / "instances.json").write_text(json.dumps(content))
    import_(tmp_path / "instances.json", tmp_path / "out", tmp_path / "val2017")
    assert list(open_finished_run(open_storage(str(tmp_path / "out")))) == ["b.jpg", "ü 1.jpg"]


def test_imported_run_is_compared_with_a_generated_one(tmp_path: Path):
    write_photographs(tmp_path / "photographs")
    make_run(tmp_path / "photographs", tmp_path / "out")
    export(tmp_path / "out", tmp_path / "coco", FORMATS["coco"]())
    import_(tmp_path / "coco", tmp_path / "imported", tmp_path / "photographs")
    a, b = (index_run(open_storage(str(tmp_path / name))) for name in ("out", "imported"))
    pairs = pair_images(a, b, limit=10)
    assert {reason: left_out.images for reason, left_out in pairs.left_out.items() if left_out.images} == {
        "only in A": 1  # the image that failed is not exported
    }
    assert [agreement.identical for _, agreement in compare_images(pairs, 0.9)] == [1] * len(NAMES)


# Damage.


def _cut(folder: Path, name: str) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize(
    ("format_name", "key", "message"),
    [
        ("coco", "instances.json", r"instances\.json: not JSON: .*line \d+ column \d+"),
        ("cvat", "annotations.xml", r"annotations\.xml: not XML: .*line \d+, column \d+"),
    ],
)
def test_damaged_file_is_named_with_the_position_before_anything_is_written(
    tmp_path: Path, format_name: str, key: str, message: str
):
    write_photographs(tmp_path / "photographs")
    make_run(tmp_path / "photographs", tmp_path / "out")
    export(tmp_path / "out", tmp_path / "source", FORMATS[format_name]())
    _cut(tmp_path / "source", key)
    with pytest.raises(AnnotationError, match=message):
        import_(tmp_path / "source" / key, tmp_path / "imported")
    assert not (tmp_path / "imported").exists()


def _failure(out: Path) -> tuple[str, str]:
    run = open_finished_run(open_storage(str(out)))
    (failed,) = [image for image in map(run.__getitem__, run) if image.status == "failed"]
    return failed.image_id, failed.error or ""


def _break_size(content: dict[str, Any]) -> None:
    content["annotations"][4]["segmentation"]["size"] = [1, 2]


def _break_counts(content: dict[str, Any]) -> None:
    content["annotations"][4]["segmentation"]["counts"] = "0P?"


def _break_height(content: dict[str, Any]) -> None:
    content["images"][0]["height"] = -1


def _break_score(content: dict[str, Any]) -> None:
    for annotation in content["annotations"]:
        annotation["predicted_iou"] = None if annotation["id"] == 1 else 0.5


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_break_size, r"annotation 1: an RLE of size \[1, 2\] for an image of size \[7, 5\]"),
        (_break_counts, "mask 2 of 3: the RLE "),
        (_break_height, "no height and width in pixels"),
        (_break_score, "predicted_iou: not 1 finite numbers per mask"),
    ],
)
def test_damaged_annotation_of_coco_becomes_a_failed_row(
    tmp_path: Path, damage: Callable[[dict[str, Any]], None], reason: str
):
    write_two(tmp_path)
    content = coco_content()
    damage(content)
    (tmp_path / "instances.json").write_text(json.dumps(content))
    import_(tmp_path / "instances.json", tmp_path / "out")
    image_id, error = _failure(tmp_path / "out")
    assert image_id == "ü 1.jpg"
    assert error.startswith(str(tmp_path))
    assert re.search(reason, error)
    assert offences(tmp_path / "out") == []


def test_damaged_file_of_sa1b_becomes_a_failed_row_with_the_position(tmp_path: Path):
    source = _written(tmp_path / "source", "SA-1B")
    _cut(source, "b.json")
    import_(source, tmp_path / "out")
    image_id, error = _failure(tmp_path / "out")
    assert image_id == "b.jpg"
    assert error.startswith(f"{source}/b.json: not JSON: ")
    assert "line 1 column " in error
    assert offences(tmp_path / "out") == []


# CVAT.

SHAPES = """<image id="0" name="b.jpg" width="11" height="6">
<polygon label="a" points="1.0,1.0;5.0,1.0;5.0,4.0;1.0,4.0" z_order="0"><attribute name="x">1</attribute></polygon>
<box label="a" xtl="1" ytl="1" xbr="3" ybr="3"/>
<points label="a" points="1,1"/>
<mask label="a" rle="1, 3" left="9" top="4" width="2" height="2"/>
<mask label="a" rle="4" left="0" top="0" width="2" height="2"/>
</image>"""


def _cvat(folder: Path, shapes: str) -> Path:
    write_two(folder)
    (folder / "annotations.xml").write_text(f"<annotations><version>1.1</version>{shapes}</annotations>")
    return folder / "annotations.xml"


def test_polygons_and_masks_of_cvat_are_read_and_other_shapes_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    import_(_cvat(tmp_path, SHAPES), tmp_path / "out")
    image = open_finished_run(open_storage(str(tmp_path / "out")))["b.jpg"]
    expected = np.zeros((2, 6, 11), np.bool_)
    expected[0, 1:4, 1:5] = True
    expected[1, 4:, 9:] = True
    expected[1, 4, 9] = False
    assert np.array_equal(image.masks, expected)
    assert "shapes without a mask are left out: 1 box, 1 points" in caplog.text
    assert offences(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('rle="1, 3"', 'rle="1, 4"', r"shape 2, mask: its rle covers 5 pixels of 4"),
        ('rle="1, 3"', 'rle="1, -3"', "shape 2, mask: its box or its rle has something else than integers"),
        ('left="9"', 'left="10"', "shape 2, mask: its box ends at 12, 6, outside of the image of 11 x 6"),
        ("5.0,1.0;", "5.0;", "shape 1, polygon: a polygon of 7 numbers"),
        ("5.0,1.0;", "5.0,x;", "shape 1, polygon: could not convert string to float: 'x'"),
        ('width="11"', 'width="x"', "no height and width in pixels"),
    ],
)
def test_damaged_shape_of_cvat_becomes_a_failed_row(tmp_path: Path, old: str, new: str, reason: str):
    import_(_cvat(tmp_path, SHAPES.replace(old, new, 1)), tmp_path / "out")
    image_id, error = _failure(tmp_path / "out")
    assert image_id == "b.jpg"
    assert error.startswith(f"{tmp_path}/annotations.xml: image b.jpg: ")
    assert reason in error


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<track id='0'/>", "CVAT for video: export it from CVAT as `CVAT for images 1.1`"),
        ("", "no images with a name in it"),
        (SHAPES + SHAPES, "two images have the same name"),
    ],
)
def test_other_files_of_cvat_are_refused(tmp_path: Path, content: str, message: str):
    with pytest.raises(AnnotationError, match=message):
        open_import(_cvat(tmp_path, content))


# The run.


def test_an_imported_run_is_not_continued_as_another(tmp_path: Path):
    source = _written(tmp_path / "source", "COCO")
    import_(source, tmp_path / "out")
    storage = open_storage(str(tmp_path / "out"))
    before = objects(storage)
    with pytest.raises(RunMismatchError, match=r"imported from .*: no model can process its images again"):
        reopen_run(storage)
    with pytest.raises(RunMismatchError, match="belongs to another run"):
        open_run(storage, Identity("/elsewhere", "0" * 64, RunConfig("mini", "mini", PRESETS["mini"])), None)
    source.write_text(source.read_text() + "\n")
    with pytest.raises(RunMismatchError, match=r"imported\.sha256 is "):
        import_(source, tmp_path / "out")
    with pytest.raises(AnnotationError, match="is the output of a run already"):
        open_import(tmp_path / "out")
    assert objects(storage) == before


def _many(folder: Path) -> Path:
    """150 images: three shards."""
    images = [{"id": n, "file_name": f"{n:03d}.jpg", "height": 2, "width": 3} for n in range(150)]
    annotations = [{"id": n, "image_id": n, "segmentation": [[0, 0, 2, 0, 2, 1, 0, 1]]} for n in range(0, 150, 2)]
    (folder / "many.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return folder / "many.json"


@pytest.mark.slow
def test_killed_import_is_resumed(tmp_path: Path):
    source = _many(tmp_path)
    import_(source, tmp_path / "undisturbed")
    undisturbed = objects(open_storage(str(tmp_path / "undisturbed")))
    places = (tmp_path / str(number) for number in itertools.count())
    points = 0
    for point, out in kill_points(partial(import_, source), places):
        points += 1
        if out.exists():
            assert strangers(objects(open_storage(str(out))), undisturbed) == [], str(point)
        import_(source, out)
        assert differences(objects(open_storage(str(out))), undisturbed) == [], str(point)
        assert offences(out) == []
    assert points > 10


@pytest.mark.s3
def test_import_to_s3(tmp_path: Path, bucket: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
    import_(_many(tmp_path), f"s3://{bucket}/out")
    assert offences(f"s3://{bucket}/out") == []
    import_(tmp_path / "many.json", tmp_path / "out")
    assert differences(*(objects(open_storage(str(out))) for out in (f"s3://{bucket}/out", tmp_path / "out"))) == []


def test_images_without_masks_are_imported(tmp_path: Path):
    import_(_many(tmp_path), tmp_path / "out")
    run = open_finished_run(open_storage(str(tmp_path / "out")))
    counts = {image.image_id: len(found.rows) for image, found in read_masks(run, select(run).images())}
    assert counts == {f"{n:03d}.jpg": 1 - n % 2 for n in range(150)}
