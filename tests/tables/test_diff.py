"""`maskmill diff`: pairs of runs with known changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from maskmill.annotations.pairs import PairedMasks
from maskmill.filters import rle
from maskmill.jobs.cli import main
from maskmill.tables.diff import COLOURS, Change, ImageChanges, MaskChange, diff_masks
from tests.evaluation.agreeing import HEIGHT, WIDTH, drawn_run, square
from tests.evaluation.drawings import Mask, rectangle


def _rectangle(x0: int, y0: int, x1: int, y1: int) -> Mask:
    return rectangle(HEIGHT, WIDTH, slice(y0, y1), slice(x0, x1))


WHOLE, LEFT, RIGHT = _rectangle(0, 0, 30, 20), _rectangle(0, 0, 16, 20), _rectangle(16, 0, 30, 20)
SMALL = square(40, 30, 6)


def _diff(a: list[Mask], b: list[Mask]) -> ImageChanges:
    counts_a, counts_b = (tuple(rle.encode(mask) for mask in masks) for masks in (a, b))
    return diff_masks(PairedMasks("a.png", HEIGHT, WIDTH, counts_a, counts_b), same=0.9, moved=0.5)


def _rows(a: list[Mask], b: list[Mask]) -> list[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    return [(row.change.value, row.mask_ids_a, row.mask_ids_b) for row in _diff(a, b).changes]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([WHOLE, SMALL], [SMALL, WHOLE], [("same", (1,), (0,)), ("same", (0,), (1,))]),
        ([SMALL], [square(41, 30, 6)], [("moved", (0,), (0,))]),
        ([WHOLE], [RIGHT, LEFT], [("split", (0,), (1, 0))]),
        ([RIGHT, LEFT, SMALL], [WHOLE, SMALL], [("same", (2,), (1,)), ("merged", (1, 0), (0,))]),
        ([WHOLE], [SMALL], [("died", (0,), ()), ("born", (), (0,))]),
        ([], [SMALL], [("born", (), (0,))]),
        ([SMALL], [], [("died", (0,), ())]),
        ([], [], []),
        # A part that is new, while the whole stays or only moves, is no split.
        ([WHOLE], [WHOLE, LEFT], [("same", (0,), (0,)), ("born", (), (1,))]),
        ([WHOLE], [_rectangle(0, 0, 26, 20), square(2, 2, 8)], [("moved", (0,), (0,)), ("born", (), (1,))]),
        # Two parts that leave most of the mask uncovered.
        ([WHOLE], [square(1, 1, 8), square(20, 10, 8)], [("died", (0,), ()), ("born", (), (0,)), ("born", (), (1,))]),
    ],
)
def test_changes_are_those_that_were_made(a: list[Mask], b: list[Mask], expected: list[object]):
    assert sorted(_rows(a, b)) == sorted(expected)  # type: ignore[type-var]


def test_row_has_the_iou_and_areas_of_both_sides():
    (row,) = _diff([WHOLE], [LEFT, _rectangle(16, 0, 28, 20)]).changes
    assert row == MaskChange("a.png", Change.SPLIT, (0,), (0, 1), iou=560 / 600, area_a=600, area_b=560)
    (row,) = _diff([], [SMALL]).changes
    assert (row.iou, row.area_a, row.area_b) == (None, 0, 36)


def test_size_of_the_changes_is_a_share_of_the_image():
    assert _diff([WHOLE, SMALL], [WHOLE, SMALL]).share == 0
    assert _diff([WHOLE, SMALL], [WHOLE]).share == pytest.approx(36 / (HEIGHT * WIDTH))
    assert _diff([WHOLE], [LEFT, RIGHT]).share == 600 / (HEIGHT * WIDTH)
    assert _diff([SMALL], [square(40, 30, 5)]).share == pytest.approx((36 - 25) / (HEIGHT * WIDTH))


@settings(deadline=None)
@given(*[st.lists(arrays(np.bool_, (3, 4)), max_size=5)] * 2)
def test_each_mask_is_in_exactly_one_change(a: list[Mask], b: list[Mask]):
    counts_a, counts_b = (tuple(rle.encode(mask) for mask in masks) for masks in (a, b))
    changes = diff_masks(PairedMasks("a.png", 3, 4, counts_a, counts_b), same=0.9, moved=0.5).changes
    assert sorted(mask_id for row in changes for mask_id in row.mask_ids_a) == list(range(len(a)))
    assert sorted(mask_id for row in changes for mask_id in row.mask_ids_b) == list(range(len(b)))


# The command line.


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    """Two runs on a.png to d.png; d.png failed in the second."""
    a = {"a": [WHOLE, SMALL], "b": [SMALL], "c": [SMALL, WHOLE], "d": [WHOLE]}
    b = {"a": [LEFT, RIGHT, SMALL], "b": [square(41, 30, 6), square(0, 0, 20)], "c": [SMALL, WHOLE], "d": None}
    return [drawn_run(tmp_path / name, drawn) for name, drawn in (("a", a), ("b", b))]


def test_command_writes_all_changes_and_names_the_images_that_changed_most(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["diff", *runs, "--to", str(tmp_path / "changes.parquet")]) == 0
    rows = pq.read_table(tmp_path / "changes.parquet").to_pylist()
    found = {(row["image_id"], row["change"], *row["mask_ids_a"], "->", *row["mask_ids_b"]) for row in rows}
    assert found == {
        ("a.png", "same", 1, "->", 2),
        ("a.png", "split", 0, "->", 0, 1),
        ("b.png", "moved", 0, "->", 0),
        ("b.png", "born", "->", 1),
        ("c.png", "same", 0, "->", 0),
        ("c.png", "same", 1, "->", 1),
    }
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "compared  3 images"
    assert [line.split() for line in lines[3:9]] == [
        ["same", "3", "2"],
        ["moved", "1", "1"],
        ["split", "1", "1"],
        ["merged", "0", "0"],
        ["born", "1", "1"],
        ["died", "0", "0"],
    ]
    assert [line.split()[0] for line in lines[11:13]] == ["a.png", "b.png"]
    assert "not compared: 1 images, failed in B  d.png" in lines


def test_pictures_show_the_changes_in_their_colours(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["diff", *runs, "--pictures", str(tmp_path / "pictures")]) == 0
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["01-a.png.png", "02-b.png.png"]
    with Image.open(tmp_path / "pictures" / "02-b.png.png") as picture:
        pixels = np.asarray(picture).astype(int).reshape(-1, 3)
    for change in (Change.MOVED, Change.BORN):
        outline = (np.array(COLOURS[change][1]) + 255) // 2
        assert (np.abs(pixels - outline).max(axis=1) < 12).any()
    assert "pictures  2 in" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--same", "0.4"], ["--to", "/no/such/changes.parquet"]])
def test_command_refuses_in_one_line(runs: list[str], arguments: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(["diff", *runs, *arguments]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert arguments[0] in error or "cannot be written" in error


def test_runs_without_changes_have_empty_tables_of_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    a, b = (drawn_run(tmp_path / name, {"a": []}) for name in "ab")
    assert main(["diff", a, b, "--to", str(tmp_path / "changes.parquet"), "--pictures", str(tmp_path / "none")]) == 0
    assert pq.read_table(tmp_path / "changes.parquet").num_rows == 0
    assert "changed most" not in capsys.readouterr().out
