"""`maskmill evaluate` from the command line to its report."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskmill.jobs.cli import main
from tests.runs import run

# As little as possible of what takes long.
QUICK = ["--only", "clicks", "--only", "calibration", "--only", "baselines", "--processes", "1"]


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Three, in BSDS's layout, each with one segment on a background; the second is damaged."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(3):
        pixels_HW3 = rng.integers(0, 255, (40, 50, 3), np.uint8)
        Image.fromarray(pixels_HW3).save(folder / f"{number}.jpg")
        labels_HW = np.ones((40, 50), np.uint8)
        labels_HW[5:30, 10:40] = 2
        Image.fromarray(labels_HW).save(folder / f"{number}.seg0.png")
    (folder / "1.jpg").write_bytes(b"no photograph")
    return folder


def test_evaluate_prints_tables_and_writes_a_report(
    photographs: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "report"
    command = ["evaluate", "--data", str(photographs), "--out", str(out), "--checkpoint", str(weights), *QUICK]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert "clicks on 4 segments" in printed.out
    assert "2 of photographs (1 skipped)" in printed.out
    assert "maskmill: skipped: " in printed.err
    assert "1.jpg: not a readable image" in printed.err
    report = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
    assert report["model"]["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert report["settings"]["measures"] == ["clicks", "baselines", "calibration"]
    assert report["settings"]["generator"]["points_per_side"] == 32
    assert report["data"]["images"] == 2
    assert len(report["data"]["skipped"]) == 1
    assert report["figures"]["clicks"]["segments"] == 4
    assert report["figures"]["proposals"] is None
    assert (out / "calibration.png").exists()


def test_evaluate_measures_several_data_sets_separately(photographs: Path, weights: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "photographs"
    shutil.copytree(photographs, other)
    for path in other.glob("2.*"):
        path.unlink()
    out = tmp_path / "report"
    command = ["evaluate", "--data", str(photographs), "--data", str(other), "--out", str(out)]
    assert main([*command, "--checkpoint", str(weights), *QUICK]) == 0
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob("*/evaluation.json"))]
    assert [report["data"]["images"] for report in reports] == [2, 1]


def test_evaluate_takes_only_the_first_images_when_there_is_a_limit(
    photographs: Path, weights: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report"
    command = ["evaluate", "--data", str(photographs), "--out", str(out), "--checkpoint", str(weights), *QUICK]
    assert main([*command, "--limit", "1"]) == 0
    data = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))["data"]
    assert data == {"name": "photographs", "images": 1, "skipped": []}


def test_evaluate_judges_a_run_whose_images_have_moved(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").mkdir()
    pixels_HW3 = np.zeros((40, 50, 3), np.uint8)
    pixels_HW3[5:30, 10:40] = 255
    Image.fromarray(pixels_HW3).save(tmp_path / "images" / "a.png")
    run(tmp_path / "images", tmp_path / "out")
    (tmp_path / "images").rename(tmp_path / "moved")
    command = ["evaluate", "--data", str(tmp_path / "out"), "--out", str(tmp_path / "report")]
    command += ["--checkpoint", str(weights), "--only", "clicks", "--processes", "2"]
    assert main(command) == 1
    assert "give their new place with --source" in capsys.readouterr().err
    assert main([*command, "--source", str(tmp_path / "moved")]) == 0
    assert "1 of out (0 skipped)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--only", "miou", "there is no measure 'miou'; choose of proposals, clicks"),
        ("--preset", "best", "there is no preset 'best'"),
        ("--model", "vit_b", "vit_b has no embedded weights"),
        ("--device", "abacus", "there is no device 'abacus'"),
        ("--data", "missing", "missing: no such file or folder"),
        ("--out", "photographs/0.jpg", "0.jpg: cannot be created"),
    ],
)
def test_evaluate_is_refused_in_one_line_when_an_option_is_wrong(
    photographs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    option: str,
    value: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    options = {"--data": str(photographs), "--out": "report"} | {option: value}
    assert main(["evaluate", *(word for pair in options.items() for word in pair)]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_evaluate_is_refused_when_no_image_can_be_read(
    photographs: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        (photographs / f"{number}.jpg").write_bytes(b"")
    command = ["evaluate", "--data", str(photographs), "--out", str(tmp_path / "report"), "--checkpoint", str(weights)]
    assert main([*command, *QUICK]) == 1
    assert "none of 3 images could be read" in capsys.readouterr().err
    assert not (tmp_path / "report" / "evaluation.json").exists()
