"""What all formats have in common: conditions, image files, names, resuming, refusals, S3, bounded memory."""

from __future__ import annotations

import io
import itertools
import os
import tarfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from benchmarks.export import make_run as make_synthetic_run
from benchmarks.export import measure
from maskmill.annotations.export import EXPORT_KEY, ImagesMode, count_steps
from maskmill.annotations.selection import read_masks, select
from maskmill.jobs.export import FormatName
from maskmill.model.errors import MaskmillError
from maskmill.pipeline.errors import ConfigError, ObjectError, RunMismatchError, SourceError
from maskmill.pipeline.finished import open_finished_run
from maskmill.pipeline.parts import masks_key
from maskmill.pipeline.storage import open_storage
from maskmill.pipeline.table import ROWS_PER_GROUP, encode_part
from maskmill.tables.query import read_rows
from tests import runs
from tests.annotations.exporting import FAILED, FORMATS, NAMES, export, make_run, masks_of, picture, write_photographs
from tests.fakes import image_result
from tests.fakes import picture as noise
from tests.kills import Objects, differences, kill_points, objects, strangers

if TYPE_CHECKING:
    from testing.s3_servers import FaultProxy


# One file, a file per image, a file per two images, two tables.
KINDS = ("coco", "sa1b", "webdataset", "hf, tables")


@pytest.fixture(params=FORMATS)
def format_name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_photographs(folder / "photographs")
    make_run(folder / "photographs", folder / "out")
    return folder / "out"


def seen(dest: Path) -> Objects:
    return objects(open_storage(str(dest))) if dest.exists() else {}


# Which images and masks.


def _select(out: Path, where: str | None = None, limit: int | None = None) -> dict[str, list[int]]:
    """The ids of the selected masks of each selected image."""
    run = open_finished_run(open_storage(str(out)))
    selection = select(run, read_rows, where, limit)
    found = {image.image_id: masks.rows["mask_id"].to_pylist() for image, masks in read_masks(run, selection.images())}
    assert sum(map(len, found.values())) == selection.n_masks
    return found


def test_selection_has_all_images_that_did_not_fail(out: Path):
    assert _select(out) == {name: list(range(len(masks_of(name)))) for name in NAMES}


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("mask_id IN (1, 3)", {name: [1, 3] for name in NAMES if name != "empty.jpg"}),
        ("image_id LIKE '%empty%'", {"empty.jpg": []}),
        ("n_masks = 0 OR mask_id = 2", {name: [2] if len(masks_of(name)) else [] for name in NAMES}),
        ("area > 1e9 -- none", {}),
        ("image_id = 'a.png' AND mask_area(rle_counts) = area AND mask_id < 2", {"a.png": [0, 1]}),
        (
            "images.image_id = 'a.jpg' AND masks.area = (SELECT max(area) FROM masks WHERE image_id = 'a.jpg')",
            {"a.jpg": [int(np.argmax(masks_of("a.jpg").sum(axis=(1, 2))))]},
        ),
        ("image_height <> 40", {}),
        (
            "image_id = 'sub/ü 1.jpg' OR image_id = 'a.png' AND mask_id < 2",
            {"a.png": [0, 1], "sub/ü 1.jpg": [0, 1, 2, 3]},
        ),
    ],
)
def test_condition_selects_masks_and_their_images(out: Path, where: str, expected: dict[str, list[int]]):
    assert _select(out, where) == expected


def test_limit_counts_selected_images(out: Path):
    assert list(_select(out, limit=2)) == list(NAMES[:2])
    assert list(_select(out, "mask_id = 0", limit=3)) == ["a.jpg", "a.png", "q\"uo'te <b>&;.jpg"]


@pytest.mark.parametrize("where", ["nothing > 1", "area >", "1) SELECT (1", "area > 'x'"])
def test_condition_that_is_no_sql_is_one_line(out: Path, where: str):
    with pytest.raises(ConfigError, match=r"^--where .*: (Binder|Parser|Conversion) Error: [^\n]*$"):
        _select(out, where)


def test_masks_of_an_image_are_together_when_they_are_in_several_row_groups(tmp_path: Path):
    (tmp_path / "photographs").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "photographs" / name).write_bytes(noise(0))
    job, plan = runs.begin(tmp_path / "photographs", tmp_path / "out")
    masks = np.zeros((ROWS_PER_GROUP + 10, 2, 3), np.bool_)
    masks[np.arange(len(masks)), 0, np.arange(len(masks)) % 3] = True
    results = [image_result("a.png", masks), image_result("b.png", masks[:20])]
    job.ledger.commit(plan[0], encode_part(plan[0], results, job.ledger.identity))
    assert {name: len(ids) for name, ids in _select(tmp_path / "out").items()} == {"a.png": len(masks), "b.png": 20}


def test_images_of_a_retry_are_selected_with_their_masks(tmp_path: Path):
    (tmp_path / "photographs").mkdir()
    for seed in range(3):
        (tmp_path / "photographs" / f"{seed}.png").write_bytes(noise(seed) if seed != 1 else b"")
    runs.run(tmp_path / "photographs", tmp_path / "out", images_per_shard=3)
    assert list(_select(tmp_path / "out")) == ["0.png", "2.png"]
    (tmp_path / "photographs" / "1.png").write_bytes(noise(1))
    runs.retry(tmp_path / "out")
    assert _select(tmp_path / "out") == {f"{seed}.png": [0, 1, 2] for seed in (0, 2, 1)}


def test_damaged_part_is_named(tmp_path: Path):
    write_photographs(tmp_path / "photographs")
    make_run(tmp_path / "photographs", tmp_path / "out")
    part = tmp_path / "out" / masks_key("00000")
    data = bytearray(part.read_bytes())
    data[100:200] = bytes(100)
    part.write_bytes(data)
    with pytest.raises(ObjectError, match=r"masks/part-00000\.parquet: damaged: [^\n]+$"):
        _select(tmp_path / "out")


# Every format.


def test_the_same_command_changes_nothing_when_the_export_is_complete(out: Path, tmp_path: Path, format_name: str):
    selection = export(out, tmp_path / "a", FORMATS[format_name](), "copy")
    export(out, tmp_path / "b", FORMATS[format_name](), "copy")
    first = seen(tmp_path / "a")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*")}
    export(out, tmp_path / "a", FORMATS[format_name](), "copy")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*")} == times
    assert differences(seen(tmp_path / "b"), first) == []
    assert len(selection) == len(NAMES)
    assert selection.failed == 1


@pytest.mark.slow
@pytest.mark.parametrize(("format_name", "torn"), [*((kind, None) for kind in KINDS), ("webdataset", 20)])
def test_killed_export_leaves_only_whole_files_and_is_resumed(
    out: Path, tmp_path: Path, format_name: str, torn: int | None
):
    work = partial(_export_copying, out, format_name)
    work(tmp_path / "undisturbed")
    undisturbed = seen(tmp_path / "undisturbed")
    places = (tmp_path / str(number) for number in itertools.count())
    points = 0
    for point, dest in kill_points(work, places, torn):
        points += 1
        assert strangers(seen(dest), undisturbed) == [], str(point)
        work(dest)
        assert differences(seen(dest), undisturbed) == [], str(point)
    assert points >= 3  # `_export` and two files


def _export_copying(out: Path, format_name: str, dest: Path) -> None:
    export(out, dest, FORMATS[format_name](), "copy", limit=3)


@pytest.mark.s3
@pytest.mark.parametrize("format_name", KINDS)
def test_export_on_s3_has_the_same_objects_after_a_broken_connection(
    out: Path,
    tmp_path: Path,
    format_name: str,
    bucket: str,
    proxy: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
):
    from testing.s3_servers import Answer, Request, refusal

    # The fifth image is the last one without a line break in its name, for which moto has no route.
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
    export(out, tmp_path / "local", FORMATS[format_name](), "copy", limit=5)
    expected = seen(tmp_path / "local")
    written: list[Request] = []
    for number in itertools.count(1):  # the number-th object that is written is refused
        dest = f"s3://{bucket}/{number}"
        written.clear()

        def refuse(request: Request, number: int = number) -> Answer | None:
            if request.method != "PUT":
                return None
            written.append(request)
            return refusal(400, "InvalidRequest", "no") if len(written) == number else None

        proxy.behave(refuse)
        try:
            export(out, dest, FORMATS[format_name](), "copy", limit=5)
        except MaskmillError:
            assert strangers(objects(open_storage(dest)), expected) == []
            proxy.behave()
            export(out, dest, FORMATS[format_name](), "copy", limit=5)
        assert differences(objects(open_storage(dest)), expected) == []
        if len(written) < number:
            return


def test_progress_ends_at_the_announced_number_of_steps(out: Path, tmp_path: Path, format_name: str):
    form = FORMATS[format_name]()
    modes: tuple[ImagesMode, ...] = ("none", "copy")
    for images, _ in itertools.product(modes, range(2)):  # the second time nothing is left to do
        done: list[int] = []
        selection = export(out, tmp_path / images, form, images, on_progress=done.append)
        assert sum(done) == count_steps(selection, form, images) >= len(NAMES)


@pytest.mark.parametrize("finished", [False, True])
def test_export_of_a_run_without_results_has_no_images(tmp_path: Path, format_name: str, finished: bool):
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / FAILED).write_bytes(b"")
    if finished:
        make_run(tmp_path / "photographs", tmp_path / "out")
    else:
        runs.begin(tmp_path / "photographs", tmp_path / "out")
    selection = export(tmp_path / "out", tmp_path / "dest", FORMATS[format_name](), "copy")
    assert len(selection) == selection.n_masks == 0
    assert (selection.failed, selection.shards_missing) == ((1, 0) if finished else (0, 1))
    export(tmp_path / "out", tmp_path / "dest", FORMATS[format_name](), "copy")


def test_export_holds_the_finished_part_of_a_run_in_progress(tmp_path: Path, format_name: str):
    write_photographs(tmp_path / "photographs")
    make_run(tmp_path / "photographs", tmp_path / "out")
    (tmp_path / "out" / masks_key("00001")).rename(tmp_path / "part")
    selection = export(tmp_path / "out", tmp_path / "dest", FORMATS[format_name]())
    assert [image.image_id for image in selection.images()] == [NAMES[0], NAMES[1], *NAMES[3:]]
    assert selection.shards_missing == 1
    (tmp_path / "part").rename(tmp_path / "out" / masks_key("00001"))
    with pytest.raises(RunMismatchError, match="the run has new results since this export"):
        export(tmp_path / "out", tmp_path / "dest", FORMATS[format_name]())


def test_image_files_are_copied_as_they_are(out: Path, tmp_path: Path, format_name: str):
    form = FORMATS[format_name]()
    if form.images_inside:
        pytest.skip("tested with the reader of the format")
    selection = export(out, tmp_path, form, "copy")
    for image in selection.images():
        name = image.stem_name if form.images_by_stem else image.name
        assert (tmp_path / form.image_folder / name).read_bytes() == picture(image.image_id)


@pytest.mark.slow
@pytest.mark.parametrize("format_name", [FormatName.COCO, FormatName.HF, FormatName.WEBDATASET, FormatName.CVAT])
def test_memory_does_not_grow_with_the_number_of_masks(tmp_path: Path, format_name: str):
    """`python -m benchmarks.export` measures all formats with a million masks."""
    peaks: list[float] = []
    for images in (200, 650):  # both have row groups of the full size
        make_synthetic_run(tmp_path / f"out-{images}", images)
        peaks.append(measure(tmp_path / f"out-{images}", tmp_path / f"dest-{images}", format_name).peak_mib)
    # As Python objects the 45,000 further masks take more than 100 MiB.
    assert peaks[1] - peaks[0] < 40


# Refusals.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"where": "area > 3"}, "where is None there and area > 3 now"),
        ({"limit": 3}, "limit is None there and 3 now"),
        ({"images": "copy"}, "images is none there and copy now"),
        ({"form": FORMATS["coco, polygons"]()}, "segmentation is compressed there and polygon now"),
    ],
)
def test_destination_with_another_export_is_refused(out: Path, tmp_path: Path, change: dict[str, Any], message: str):
    first: dict[str, Any] = {"form": FORMATS["coco"]()}
    export(out, tmp_path, **first)
    before = seen(tmp_path)
    with pytest.raises(RunMismatchError, match=message):
        export(out, tmp_path, **(first | change))
    assert seen(tmp_path) == before


def test_destination_with_other_objects_is_refused(out: Path, tmp_path: Path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(RunMismatchError, match=r"holds other objects, such as mine\.txt"):
        export(out, tmp_path, FORMATS["coco"]())
    (tmp_path / "mine.txt").rename(tmp_path / EXPORT_KEY)
    with pytest.raises(RunMismatchError, match="_export: damaged"):
        export(out, tmp_path, FORMATS["coco"]())


@pytest.mark.parametrize("dest", ["out", "out/export", "."])
def test_destination_that_overlaps_with_the_run_is_refused(tmp_path: Path, dest: str):
    write_photographs(tmp_path / "photographs")
    make_run(tmp_path / "photographs", tmp_path / "out")
    with pytest.raises(RunMismatchError, match="overlaps with the run"):
        export(tmp_path / "out", tmp_path / dest, FORMATS["coco"]())


# Image files.


def test_images_are_linked_to_where_they_are(tmp_path: Path):
    write_photographs(tmp_path / "photographs")
    make_run(tmp_path / "photographs", tmp_path / "out")
    (tmp_path / "photographs").rename(tmp_path / "moved")
    for _ in range(2):
        export(tmp_path / "out", tmp_path / "dest", FORMATS["coco"](), "link", moved_to=str(tmp_path / "moved"))
    for name in NAMES:
        assert os.readlink(tmp_path / "dest/images" / name) == str(tmp_path / "moved" / name)
    (tmp_path / "moved" / NAMES[3]).unlink()
    with pytest.raises(SourceError, match=r"no longer there; if the images have moved, give --source"):
        export(tmp_path / "out", tmp_path / "again", FORMATS["coco"](), "link", moved_to=str(tmp_path / "moved"))


@pytest.mark.parametrize("images", ["copy", "link"])
def test_missing_image_is_named(tmp_path: Path, images: ImagesMode):
    write_photographs(tmp_path / "photographs")
    make_run(tmp_path / "photographs", tmp_path / "out")
    (tmp_path / "photographs" / NAMES[0]).unlink()
    with pytest.raises(SourceError, match=r"photographs/a\.jpg: .*if the images have moved, give --source"):
        export(tmp_path / "out", tmp_path / "dest", FORMATS["coco"](), images)


def test_image_that_changed_since_the_run_is_refused(tmp_path: Path):
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "a.png").write_bytes(noise(0))
    runs.run(tmp_path / "photographs", tmp_path / "out")
    (tmp_path / "photographs" / "a.png").write_bytes(noise(1))
    with pytest.raises(SourceError, match=r"a\.png: has changed since the run"):
        export(tmp_path / "out", tmp_path / "dest", FORMATS["coco"](), "copy")


def test_images_in_tars_are_copied_in_any_order_and_not_linked(tmp_path: Path):
    (tmp_path / "tars").mkdir()
    for tar_name, seeds in (("b.tar", (3, 1, 2)), ("a.tar", (0, 4))):
        with tarfile.open(tmp_path / "tars" / tar_name, "w") as tar:
            for seed in seeds:
                info = tarfile.TarInfo(f"./{seed}.png")
                info.size = len(noise(seed))
                tar.addfile(info, io.BytesIO(noise(seed)))
    runs.run(tmp_path / "tars", tmp_path / "out")
    export(tmp_path / "out", tmp_path / "dest", FORMATS["coco"](), "copy", where="image_id NOT LIKE '%/1.png'")
    copied = {path.name: path.read_bytes() for path in (tmp_path / "dest/images").rglob("*.png")}
    assert copied == {f"{seed}.png": noise(seed) for seed in (0, 2, 3, 4)}
    with pytest.raises(ConfigError, match="inside of tars; give --images copy"):
        export(tmp_path / "out", tmp_path / "links", FORMATS["coco"](), "link")


def test_ids_that_are_no_paths_get_file_names_of_their_own(tmp_path: Path):
    ids = ["../up.png", "/root.png", "a//b.png", ".hidden/a.png", "a/b.png"]
    lines = ["uri,image_id"]
    for number, image_id in enumerate(ids):
        (tmp_path / f"{number}.png").write_bytes(noise(number))
        lines.append(f"{number}.png,{image_id}")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    runs.run(tmp_path / "list.csv", tmp_path / "out" / "run")
    dest = tmp_path / "dest" / "inside"
    selection = export(tmp_path / "out" / "run", dest, FORMATS["coco"](), "copy")
    assert [image.name for image in selection.images()] == [
        "up.png",
        "root.png",
        "_.hidden/a.png",
        "a/b.png",
        "a/b#2.png",
    ]
    assert selection.renamed == len(ids)
    copied = {path.read_bytes() for path in (dest / "images").rglob("*") if path.is_file()}
    assert copied == {noise(number) for number in range(len(ids))}
