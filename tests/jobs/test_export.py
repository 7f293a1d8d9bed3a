"""`maskmill export` writes every format and says what is left out or lost."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from maskmill.annotations.cvat import cvat_format
from maskmill.jobs.cli import main
from maskmill.jobs.export import FormatName
from maskmill.pipeline.storage import open_storage
from tests.annotations.exporting import NAMES, export, make_run, write_photographs
from tests.annotations.writing import coco_content, write_coco_uncompressed, write_sa1b
from tests.kills import objects

if TYPE_CHECKING:
    from testing.s3_servers import FaultProxy


@pytest.fixture
def out(tmp_path: Path) -> Path:
    write_photographs(tmp_path / "photographs")
    make_run(tmp_path / "photographs", tmp_path / "out")
    return tmp_path / "out"


def _printed(capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    captured = capsys.readouterr()
    assert captured.err == ""
    return [line.split(maxsplit=1) for line in captured.out.splitlines()]


@pytest.mark.parametrize("name", FormatName)
def test_every_format_is_written_and_its_losses_are_printed(
    out: Path, tmp_path: Path, name: FormatName, capsys: pytest.CaptureFixture[str]
):
    dest = tmp_path / "dest"
    for _ in range(2):
        assert main(["export", str(out), str(dest), "--format", name]) == 0
        printed = dict(_printed(capsys))
        assert printed["images"] == f"{len(NAMES)}, with {4 * (len(NAMES) - 1)} masks"
        assert printed["failed"] == "1 images, left out"
        assert printed["output"] == str(dest)


def test_condition_limit_and_options_reach_the_export(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    dest = str(tmp_path / "dest")
    options = ["--where", "mask_id = 1", "--limit", "2", "--segmentation", "polygon", "--images", "copy"]
    assert main(["export", str(out), dest, "--format", "coco", *options]) == 0
    assert ["lost", "2 holes filled: coco cannot express them"] in _printed(capsys)
    assert {path.name for path in Path(dest, "images").iterdir()} == {"a.jpg", "a.png"}
    assert (
        main(["export", str(out), f"{dest}-hf", "--format", "hf", "--layout", "tables", "--images-per-file", "4"]) == 0
    )
    assert len(list(Path(f"{dest}-hf", "masks").iterdir())) == 2


@pytest.mark.s3
def test_commands_of_the_page_run_as_they_are_printed(
    out: Path, tmp_path: Path, bucket: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
    monkeypatch.chdir(tmp_path)
    remote = open_storage(f"s3://{bucket}/out")
    for key, data in objects(open_storage(str(out))).items():
        remote.put(key, data)
    write_coco_uncompressed(tmp_path)
    (tmp_path / "lvis_v1_val.json").write_text(json.dumps(coco_content()))
    (tmp_path / "sa1b").mkdir()
    write_sa1b(tmp_path / "sa1b")
    export(out, tmp_path / "cvat", cvat_format())
    (tmp_path / "cvat/annotations.xml").rename(tmp_path / "annotations.xml")
    page = Path(__file__).parents[2] / "docs/tasks/export.md"
    commands = re.findall(r"^    maskmill (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(commands) == 7
    for command in commands:
        assert main(shlex.split(command.replace("s3://bucket", f"s3://{bucket}"))) == 0, command
    assert [item.key for item in open_storage(f"s3://{bucket}/shards").list()] == ["000000.tar", "_export"]


@pytest.mark.s3
def test_condition_is_applied_to_a_run_on_s3(
    out: Path, tmp_path: Path, bucket: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
    remote = open_storage(f"s3://{bucket}/out")
    for key, data in objects(open_storage(str(out))).items():
        remote.put(key, data)
    options = ["--format", "coco", "--where", "mask_id = 2 AND image_id LIKE 'a.%'"]
    for source, dest in ((out, "local"), (remote.uri, "remote")):
        assert main(["export", str(source), str(tmp_path / dest), *options]) == 0
    local, remote_copy = ((tmp_path / dest / "instances.json").read_bytes() for dest in ("local", "remote"))
    assert local == remote_copy
    assert len(json.loads(local)["annotations"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "dest", "--format", "coco"], "nowhere: not an output of maskmill: it has no _run.json"),
        (["out", "dest", "--format", "coco", "--where", "areas > 3"], 'Referenced column "areas" not found'),
        (
            ["out", "dest", "--format", "hf", "--images", "link"],
            "hf has the images inside of its files",
        ),
        (["out", "out/dest", "--format", "coco"], "overlaps with the run"),
    ],
)
def test_user_errors_are_one_line(
    out: Path,
    tmp_path: Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    assert main(["export", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("maskmill: error: ")
    assert message in error
