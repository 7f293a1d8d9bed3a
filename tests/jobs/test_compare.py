"""`maskmill compare` prints how far two runs agree, and writes it as JSON."""

import json
from pathlib import Path

import pytest

from maskmill.jobs.cli import main
from tests.evaluation.agreeing import drawn_run, square


def _lines(printed: str) -> list[str]:
    """What stands in the columns, however wide they are."""
    return [" ".join(line.split()) for line in printed.splitlines()]


@pytest.fixture
def outs(tmp_path: Path) -> list[str]:
    """Two runs: one mask of b.png is shifted, one of c.png is lost, d.png fails in the second."""
    masks = [square(0, 0), square(25, 0), square(10, 15)]
    a = drawn_run(tmp_path / "a", {"a": masks, "b": masks, "c": masks, "d": masks})
    b = drawn_run(tmp_path / "b", {"a": masks, "b": [square(1, 0), *masks[1:]], "c": masks[:2], "d": None})
    return [a, b]


def test_compare_prints_figures_settings_and_the_images_that_agree_least(
    outs: list[str], capsys: pytest.CaptureFixture[str]
):
    assert main(["compare", *outs]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    printed = _lines(captured.out)
    assert printed[0] == "A B"
    assert printed[1] == f"run {outs[0]} {outs[1]}"
    assert printed[2].startswith("source ")
    assert printed[3:] == [
        "shards done 2 of 2 2 of 2",
        "images 4 (0 failed) 4 (1 failed)",
        "masks compared 9 8",
        "of these matched 88.89 % 100.00 %",
        "",
        "compared 3 images",
        "same count 66.67 % of these, of masks",
        "identical 33.33 % of these, to the byte",
        "masks matched 94.12 %, at IoU >= 0.9",
        "mean IoU 0.9881, of the matched",
        "",
        "not compared images",
        "failed in B 1 d.png",
        "",
        "agree least masks in A in B matched mean IoU",
        "c.png 3 2 2 1.0000",
        "b.png 3 3 3 0.9683",
    ]


def test_compare_says_nothing_of_differences_when_there_are_none(outs: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(["compare", outs[0], outs[0]]) == 0
    printed = capsys.readouterr().out
    assert "identical 100.00 % of these, to the byte" in _lines(printed)
    for heading in ("source", "not compared", "agree least"):
        assert heading not in printed


def test_compare_names_as_many_images_as_the_limit_and_matches_from_the_given_iou_on(
    outs: list[str], capsys: pytest.CaptureFixture[str]
):
    assert main(["compare", *outs, "--limit", "1", "--iou", "0.95"]) == 0
    printed = _lines(capsys.readouterr().out)
    assert "masks matched 82.35 %, at IoU >= 0.95" in printed
    assert printed[-2:] == ["agree least masks in A in B matched mean IoU", "b.png 3 3 2 1.0000"]


def test_compare_says_that_there_is_nothing_to_compare_when_all_images_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    outs = [drawn_run(tmp_path / name, dict.fromkeys("abcd")) for name in ("a", "b")]
    assert main(["compare", *outs, "--limit", "2"]) == 0
    printed = _lines(capsys.readouterr().out)
    assert "compared 0 images" in printed
    assert "masks matched -, at IoU >= 0.9" in printed
    assert "failed in both 4 a.png, b.png" in printed


def test_compare_writes_the_figures_as_json(outs: list[str], tmp_path: Path):
    path = tmp_path / "agreement.json"
    assert main(["compare", *outs, "--json", str(path)]) == 0
    report = json.loads(path.read_text())
    assert [run["failed"] for run in report["runs"]] == [0, 1]
    assert list(report["settings"]) == ["source"]
    assert report["not_compared"]["failed in B"] == {"images": 1, "first": ["d.png"]}
    assert report["agreement"]["matched"] == 8
    assert report["agreement"]["shares"]["matched_of_b"] == 1
    assert [(image["image_id"], image["matched"]) for image in report["worst"]] == [("c.png", 2), ("b.png", 3)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/no/such/run"], "/no/such/run: not an output of maskmill"),
        (["ftp://host/out"], "ftp:// is not supported"),
        (["{out}", "--json", "/no/such/folder/x.json"], "/no/such/folder/x.json: cannot be written"),
    ],
)
def test_compare_says_in_one_line_what_is_wrong(
    outs: list[str], arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["compare", outs[0], *(argument.format(out=outs[1]) for argument in arguments)]) == 1
    stderr = capsys.readouterr().err
    assert message in stderr
    assert stderr.count("\n") == 1
