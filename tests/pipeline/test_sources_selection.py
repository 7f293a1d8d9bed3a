"""Which files of a source are images of a run: patterns, rubbish, and that what is left out is counted."""

import logging
from collections import Counter
from pathlib import Path

import pytest

from maskmill.pipeline.config import PRESETS, RunConfig
from maskmill.pipeline.errors import ConfigError, RunMismatchError, SourceError
from maskmill.pipeline.finished import Totals, open_finished_run
from maskmill.pipeline.job import Job
from maskmill.pipeline.ledger import Identity, open_run, reopen_run
from maskmill.pipeline.sources import NameFilter, Source, open_planned, open_source
from maskmill.pipeline.storage import open_storage
from maskmill.pipeline.verify import verify
from maskmill.pipeline.worker import run_local
from tests.fakes import FakeEngine
from tests.pipeline.sources import contents, hugging_face, shards, tar_bytes, write

CONFIG = RunConfig("mini", "mini", PRESETS["mini"])
PATHS = ("a.jpg", "train/a.jpg", "train/x/b.png", "val/train/c.jpg", "val/x.seg/d.JPG")


@pytest.mark.parametrize(
    ("pattern", "matched"),
    [
        ("*.jpg", {"a.jpg", "train/a.jpg", "val/train/c.jpg"}),
        ("a.jpg", {"a.jpg", "train/a.jpg"}),
        ("/a.jpg", {"a.jpg"}),
        ("train", {"train/a.jpg", "train/x/b.png", "val/train/c.jpg"}),
        ("/train/", {"train/a.jpg", "train/x/b.png"}),
        ("train/*", {"train/a.jpg", "train/x/b.png", "val/train/c.jpg"}),
        ("train/?.jpg", {"train/a.jpg", "val/train/c.jpg"}),
        ("[ab].*", {"a.jpg", "train/a.jpg", "train/x/b.png"}),
        ("*.seg", {"val/x.seg/d.JPG"}),
        ("rain", set()),
        ("/*.jpg", {"a.jpg"}),
        ("/*/*.jpg", {"train/a.jpg"}),
        ("/**/*.jpg", {"a.jpg", "train/a.jpg", "val/train/c.jpg"}),
        ("val/**/*.JPG", {"val/x.seg/d.JPG"}),
        ("train/**", {"train/a.jpg", "train/x/b.png", "val/train/c.jpg"}),
    ],
)
def test_pattern_names_files_or_folders_at_any_depth(pattern: str, matched: set[str]):
    assert {path for path in PATHS if NameFilter(include=(pattern,)).keeps(path)} == matched
    assert {path for path in PATHS if not NameFilter(exclude=(pattern,)).keeps(path)} == matched


def test_image_is_kept_when_a_pattern_includes_it_and_none_excludes_it():
    names = NameFilter(include=("*.jpg", "*.png"), exclude=("/train", "c.*"))
    assert [path for path in PATHS if names.keeps(path)] == ["a.jpg"]


@pytest.mark.parametrize("pattern", ["", "/"])
def test_empty_pattern_is_refused(pattern: str):
    with pytest.raises(ConfigError, match="one is empty"):
        NameFilter(exclude=(pattern,))


RUBBISH = (
    *("a.seg.png", "x/b.SEG.PNG", "@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg", "__MACOSX/._a.jpg", "__MACOSX/x/a.jpg"),
    *("._a.jpg", ".thumbnails/a.png", "$RECYCLE.BIN/a.jpg", "x/#recycle/b.jpg", "lost+found/c.jpg"),
)
SPARED = ("a.jpg", "eaDir/b.jpg", "seg.png", "x/MACOSX.jpg")


def test_rubbish_in_a_folder_is_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    write(tmp_path, *RUBBISH, *SPARED, "Thumbs.db")
    with caplog.at_level(logging.WARNING):
        assert tuple(contents(open_source(str(tmp_path)))) == SPARED
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{tmp_path}: left out 10 files or folders (hidden: 2, *.seg.png: 2, $RECYCLE.BIN: 1, @eaDir: 1, .db: 1, "
        "__MACOSX: 1, lost+found: 1, #recycle: 1)"
    )


def test_rubbish_in_a_tar_is_left_out_and_counted(tmp_path: Path):
    (tmp_path / "a.tar").write_bytes(tar_bytes(dict.fromkeys((*RUBBISH, *SPARED, "a.json"), b"")))
    source = open_source(str(tmp_path))
    left_out: Counter[str] = Counter()
    read = [record.image_id for shard in shards(source) for record in source.read(shard, left_out)]
    assert read == [f"a.tar/{name}" for name in SPARED]
    assert left_out == {
        "hidden": 2,
        "*.seg.png": 2,
        "__MACOSX": 2,
        "@eaDir": 1,
        "$RECYCLE.BIN": 1,
        "#recycle": 1,
        "lost+found": 1,
    }


def test_rubbish_in_parquet_rows_is_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "a.parquet").write_bytes(hugging_face([(b"1", "a.jpg"), (b"2", "a.seg.png"), (b"3", None)]))
    with caplog.at_level(logging.WARNING):
        assert contents(open_source(str(tmp_path))) == {"a.parquet/a.jpg": b"1", "a.parquet/2": b"3"}
    assert "left out 1 files or folders (*.seg.png: 1)" in caplog.text


def test_image_that_the_user_names_is_never_rubbish(tmp_path: Path):
    write(tmp_path, "a.seg.png", "@eaDir/b.jpg")
    (tmp_path / "list.csv").write_text("uri\na.seg.png\n@eaDir/b.jpg\n")
    assert list(contents(open_source(str(tmp_path / "a.seg.png")))) == ["a.seg.png"]
    assert list(contents(open_source(str(tmp_path / "@eaDir")))) == ["b.jpg"]
    assert list(contents(open_source(str(tmp_path / "list.csv")))) == ["a.seg.png", "@eaDir/b.jpg"]


def test_folder_that_holds_only_rubbish_is_refused_with_the_count(tmp_path: Path):
    write(tmp_path, "a.seg.png", "@eaDir/b.jpg")
    with pytest.raises(SourceError, match=r"no images .*left out 2 files or folders \(@eaDir: 1, \*\.seg\.png: 1\)$"):
        open_source(str(tmp_path))


def write_each_kind(folder: Path) -> None:
    """The images photos/a.jpg, masks/a.png and photos/b.jpg in each kind of source."""
    images = ("photos/a.jpg", "masks/a.png", "photos/b.jpg")
    write(folder, *(f"folder/{name}" for name in images))
    (folder / "x.tar").write_bytes(tar_bytes(dict.fromkeys(images, b"")))
    (folder / "x.parquet").write_bytes(hugging_face([(b"1", name) for name in images], rows_per_group=1))
    (folder / "x.csv").write_text("\n".join(["uri", *(f"folder/{name}" for name in images)]))


def short_ids(source: Source) -> set[str]:
    return {image_id.partition("/")[2] if image_id[0] in "xf" else image_id for image_id in contents(source)}


@pytest.mark.parametrize("kind", ["folder", "x.tar", "x.parquet", "x.csv"])
def test_patterns_select_images_in_each_kind_of_source(tmp_path: Path, kind: str):
    write_each_kind(tmp_path)
    for names, expected in [
        (NameFilter(exclude=("masks",)), {"photos/a.jpg", "photos/b.jpg"}),
        (NameFilter(include=("*.png", "b.*")), {"masks/a.png", "photos/b.jpg"}),
        (NameFilter(include=("photos",), exclude=("b.*",)), {"photos/a.jpg"}),
    ]:
        source = open_source(str(tmp_path / kind), names)
        assert short_ids(source) == expected
        assert [shard.index for shard in shards(source)] == list(range(len(shards(source))))


def test_pattern_selects_tars_by_their_names(tmp_path: Path):
    for name in ("train-0.tar", "val-0.tar", "val-1.tar"):
        (tmp_path / name).write_bytes(tar_bytes({"a.jpg": b""}))
    names = NameFilter(exclude=("val-*.tar",))
    assert [shard.uri for shard in shards(open_source(str(tmp_path), names))] == [f"{tmp_path}/train-0.tar"]
    assert list(contents(open_source(str(tmp_path / "*-0.tar"), names))) == ["train-0.tar/a.jpg"]
    assert list(contents(open_source(str(tmp_path), NameFilter(include=("val-1*",))))) == ["val-1.tar/a.jpg"]


def test_numbers_of_repeated_members_do_not_depend_on_patterns(tmp_path: Path):
    members = [("x.jpg", b"1"), ("y.png", b"2"), ("x.jpg", b"3"), ("y.png", b"4")]
    (tmp_path / "a.tar").write_bytes(tar_bytes(members))
    names = NameFilter(include=("*.png",))
    assert contents(open_source(str(tmp_path / "a.tar"), names)) == {"a.tar/y.png": b"2", "a.tar/y.png#2": b"4"}


def test_folder_of_images_and_tars_is_read_when_one_kind_is_excluded(tmp_path: Path):
    write(tmp_path, "a.jpg", "c.jpg")
    (tmp_path / "b.tar").write_bytes(tar_bytes({"x.jpg": b""}))
    with pytest.raises(SourceError, match=r"has both images and tars: leave the tars out with --exclude '\*\.tar'"):
        shards(open_source(str(tmp_path)))
    assert list(contents(open_source(str(tmp_path), NameFilter(exclude=("*.tar",))))) == ["a.jpg", "c.jpg"]
    assert list(contents(open_source(str(tmp_path), NameFilter(exclude=("/*.jpg",))))) == ["b.tar/x.jpg"]


@pytest.mark.parametrize("kind", ["folder", "x.tar", "x.parquet", "x.csv"])
def test_patterns_are_part_of_the_plan(tmp_path: Path, kind: str):
    write_each_kind(tmp_path)
    names = NameFilter(include=("*.png", "b.*"), exclude=("x.gif",))
    source = open_source(str(tmp_path / kind), names)
    identity = Identity(source.uri, "0" * 64, CONFIG, names)
    out = open_storage(str(tmp_path / "out"), make=True)
    open_run(out, identity, source)
    reopened, _ = reopen_run(out)
    assert reopened == identity
    plan = open_finished_run(out).plan
    planned = open_planned(plan.source)
    ids = [record.image_id for shard in plan for record in planned.read(shard)]
    assert ids == list(contents(source))
    assert len(ids) == 2
    with pytest.raises(RunMismatchError, match=r'names\.include is \["\*\.png", "b\.\*"\] there and \[\] now'):
        open_run(out, Identity(source.uri, "0" * 64, CONFIG, NameFilter(exclude=("x.gif",))), None)


def test_tar_of_which_all_images_are_left_out_is_done_and_sound(tmp_path: Path):
    write_each_kind(tmp_path)
    names = NameFilter(exclude=("*.png", "photos"))
    source = open_source(str(tmp_path / "x.tar"), names)
    out = open_storage(str(tmp_path / "out"), make=True)
    ledger, plan = open_run(out, Identity(source.uri, "0" * 64, CONFIG, names), source)
    run_local(Job(open_planned(plan.source), ledger, FakeEngine(tmp_path), CONFIG.decoding), plan, lambda _: None)
    assert open_finished_run(out).totals() == Totals(images=0, failed=0, masks=0, left_out={"matched by --exclude": 3})
    assert [offence for check in verify(out) for offence in check.offences] == []


@pytest.mark.parametrize("kind", ["folder", "folder/photos/a.jpg", "x.parquet", "x.csv"])
def test_run_is_refused_when_the_patterns_leave_nothing(tmp_path: Path, kind: str):
    write_each_kind(tmp_path)
    names = NameFilter(include=("*.webp",), exclude=("masks",))

    def begin() -> None:
        source = open_source(str(tmp_path / kind), names)
        open_run(open_storage(str(tmp_path / "out"), make=True), Identity(source.uri, "0" * 64, CONFIG, names), source)

    with pytest.raises(SourceError, match=r"^.*no images.* with --include '\*\.webp' --exclude 'masks'.*$"):
        begin()
