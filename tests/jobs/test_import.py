"""`maskmill import` makes a run that the other commands accept, and names damaged annotations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from maskmill.jobs.cli import main
from maskmill.jobs.import_ import FAILURES_SHOWN
from tests.annotations.writing import coco_content, write_coco


def test_imported_run_is_verified_compared_previewed_and_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source, out = str(write_coco(tmp_path)), str(tmp_path / "out")
    for _ in range(2):
        assert main(["import", source, out]) == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        assert captured.out.splitlines() == ["images  2 (2 ok, 0 failed)", "masks   6", f"output  {out}"]
    assert main(["verify", out]) == 0
    assert main(["compare", out, out]) == 0
    assert main(["preview", out, "--to", str(tmp_path / "preview.png")]) == 0
    assert main(["export", out, str(tmp_path / "sa1b"), "--format", "sa1b"]) == 0
    printed = capsys.readouterr().out
    assert "1 of 1 shards, 2 images (0 failed), 6 masks: nothing wrong" in printed
    assert "identical      100.00 % of these, to the byte" in printed
    assert "images  2, with 6 masks" in printed


def test_damaged_annotations_are_one_line_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    count = FAILURES_SHOWN + 5
    images = [{"id": n, "file_name": f"{n}.jpg", "height": 2, "width": 3} for n in range(count)]
    annotations = [{"id": 7 * n, "image_id": n, "segmentation": [[0, 0, 1]]} for n in range(count)]
    (tmp_path / "bad.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    assert main(["import", str(tmp_path / "bad.json"), str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == FAILURES_SHOWN + 1
    reason = "a polygon of 3 numbers: x and y alternate, so their count must be even"
    assert lines[0] == f"maskmill: warning: {tmp_path}/bad.json: image 0.jpg: annotation 0: {reason}"
    assert lines[-1] == "maskmill: warning: ... and 5 more images with damaged annotations"
    assert captured.out.splitlines()[0] == f"images  {count} (0 ok, {count} failed)"


@pytest.mark.parametrize("arguments", [["nowhere", "out"], ["torn.json", "out"], ["instances.json", "."]])
def test_user_errors_are_one_line(
    tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "instances.json").write_text(json.dumps(coco_content()))
    (tmp_path / "torn.json").write_text(json.dumps(coco_content())[:-9])
    assert main(["import", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("maskmill: error: ")
    assert not (tmp_path / "out").exists()
