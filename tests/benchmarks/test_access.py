"""The benchmark of access: all formats give the same answers, and the report has every figure."""

from pathlib import Path

from benchmarks.access import FILTERS, IOU, NAMES, QUESTIONS, Sizes, measure, report
from benchmarks.rle_encodings import ENCODINGS

SIZES = Sizes(images=12, masks=9, json_images=7, repeats=1, height=60, width=90, pool=200)


def test_formats_agree_and_all_figures_are_reported(tmp_path: Path):
    result = measure(tmp_path, SIZES)  # raises if two formats disagree
    assert result.seconds.keys() == QUESTIONS.keys()
    for question in (*FILTERS, IOU):
        assert result.seconds[question].keys() == NAMES.keys()
    text = report(result, SIZES, {"commit": "0123456"})
    assert "- commit: 0123456" in text
    for name in (*NAMES.values(), *QUESTIONS, *ENCODINGS):
        assert f"| {name} |" in text
