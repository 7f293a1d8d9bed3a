"""What is measured on one image, and how many images become figures."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.random import Generator
from rich.console import Console

from maskmill.annotations import AnnotatedImage
from maskmill.evaluation.figures import Figures, summarise
from maskmill.evaluation.image import MEASURES, MODEL, ImageEvaluator, ImageScores, Settings
from maskmill.evaluation.report import tables, write_report
from maskmill.evaluation.run import EvaluationError, Skipped, measure_images
from maskmill.pipeline.config import GeneratorConfig
from maskmill.pipeline.errors import StorageError
from testing.networks import SMALL_CONFIGS, random_network
from tests.evaluation.drawings import annotated, rectangle

CONFIG = GeneratorConfig(points_per_side=4, pred_iou_thresh=0, stability_score_thresh=0)
SETTINGS = Settings(proposal_points=2)


def make_evaluator(settings: Settings = SETTINGS) -> ImageEvaluator:
    """A small model with random weights, which knows nothing."""
    return ImageEvaluator(random_network(SMALL_CONFIGS["grid7"]), CONFIG, settings)


def make_nothing() -> ImageEvaluator:
    """Dies where it is called, as a process without memory does."""
    import os

    os._exit(1)


def drawing(seed: int) -> AnnotatedImage:
    """A bright rectangle on noise, drawn by two people, one of whom sees nothing else."""
    rng: Generator = np.random.default_rng(seed)
    pixels_HW3 = rng.integers(0, 90, (48, 60, 3), np.uint8)
    pixels_HW3[10:30, 20:45] += 150
    inside = rectangle(48, 60, slice(10, 30), slice(20, 45))
    return annotated([inside, ~inside, inside | ~inside], [0, 0, 1], image_id=str(seed), pixels_HW3=pixels_HW3)


class Drawings:
    """Three drawings, of which one cannot be read."""

    name = "drawings"

    def __len__(self) -> int:
        return 3

    def image_id(self, index: int) -> str:
        return drawing(index).image_id

    def __getitem__(self, index: int, /) -> AnnotatedImage:
        image = drawing(index)
        return replace(image, fetch=bytes) if index == 1 else image


@pytest.fixture(scope="module")
def scores() -> list[ImageScores]:
    evaluator = make_evaluator()
    return [evaluator.measure(drawing(seed)) for seed in range(2)]


def test_everything_is_measured_unless_told_otherwise(scores: list[ImageScores]) -> None:
    figures = summarise(scores, MEASURES)
    assert figures.clicks is not None
    assert figures.boxes is not None
    assert figures.calibration is not None
    assert figures.recall is not None
    assert figures.proposals is not None
    assert figures.edges is not None
    assert figures.clicks.segments == figures.boxes.segments == 6
    assert figures.calibration.masks == 18
    assert sum(b.masks for b in figures.calibration.bins) == 18
    assert set(figures.clicks.iou) == {"1", "2", "3", "5", "9"}
    oracle, ranked = figures.clicks.oracle, figures.clicks.iou["1"]
    assert oracle is not None
    assert ranked is not None
    assert oracle >= ranked
    assert figures.edges.images == 2


def test_baselines_are_cut_to_as_many_masks_as_the_model_has(scores: list[ImageScores]) -> None:
    rows = summarise(scores, MEASURES).recall
    assert rows is not None
    assert [row.masks_of for row in rows] == [MODEL, MODEL, "felzenszwalb", "felzenszwalb", "grid", "grid"]
    own, _, _, _, whole_grid, cut_grid = rows
    limit = round(own.masks_per_image)
    assert cut_grid.limit == limit
    assert cut_grid.masks_per_image == min(limit, whole_grid.masks_per_image)
    assert cut_grid.recall is not None
    assert whole_grid.recall is not None
    assert cut_grid.recall <= whole_grid.recall


@pytest.mark.parametrize("measure", MEASURES)
def test_only_what_was_asked_for_is_measured(measure: str) -> None:
    settings = Settings((measure,), proposal_points=2)
    figures = summarise([make_evaluator(settings).measure(drawing(0))], settings.measures)
    field = "recall" if measure == "baselines" else measure
    by_size = {"sizes"} if measure in ("clicks", "boxes") else set()
    assert {name for name, value in vars(figures).items() if value is not None} == {field} | by_size


def test_segments_that_are_too_small_are_not_clicked() -> None:
    evaluator = make_evaluator(Settings(("boxes",), min_share=0.5))
    boxes_K = evaluator.measure(drawing(0)).boxes_K
    assert boxes_K is not None
    assert len(boxes_K) == 2  # the rectangle has 500 of 2880 pixels


def test_images_without_segments_have_figures_that_are_not_defined(tmp_path: Path) -> None:
    crowd = annotated([rectangle(20, 20, slice(0, 9), slice(0, 9))], crowds=[True])
    figures = summarise([make_evaluator().measure(crowd)], MEASURES)
    assert figures.clicks is not None
    assert figures.clicks.oracle is None
    assert figures.proposals is not None
    assert figures.proposals["all"]["10"] is None
    _read(tmp_path, figures)


def test_the_report_has_every_figure_in_json_and_in_tables(tmp_path: Path, scores: list[ImageScores]) -> None:
    figures = summarise(scores, MEASURES)
    written = _read(tmp_path, figures)
    assert written["model"] == "random"
    assert figures.clicks is not None
    assert written["figures"]["clicks"]["oracle"] == figures.clicks.oracle
    assert written["figures"]["recall"][0]["masks_of"] == MODEL
    assert set(written["figures"]) == set(vars(figures))
    console = Console(record=True, width=100, file=io.StringIO())
    for table in tables(figures):
        console.print(table)
    text = console.export_text()
    assert f"{figures.clicks.oracle:.3f}" in text
    for title in ("object proposals", "clicks on 6", "boxes around 6", "segment recall", "calibration", "edges in 2"):
        assert title in text


def test_the_report_fails_in_one_line_when_its_folder_is_gone(tmp_path: Path, scores: list[ImageScores]) -> None:
    with pytest.raises(StorageError, match=r"evaluation\.json: cannot be written: No such file"):
        write_report(tmp_path / "gone", {}, summarise(scores, MEASURES), "random")


def test_an_image_that_cannot_be_read_is_skipped_with_a_reason() -> None:
    first, second, third = measure_images(make_evaluator, Drawings(), 3, 1)
    assert isinstance(first, ImageScores)
    assert isinstance(second, Skipped)
    assert second.reason == "1.png: the file is empty"
    assert isinstance(third, ImageScores)
    assert third.image_id == "2"


def test_several_processes_measure_the_same_in_the_same_order() -> None:
    alone, together = (list(measure_images(make_evaluator, Drawings(), 3, processes)) for processes in (1, 2))
    for one, other in zip(alone, together, strict=True):
        assert type(one) is type(other)
        if isinstance(one, ImageScores):
            assert isinstance(other, ImageScores)
            assert one.image_id == other.image_id
            assert one.clicks is not None
            assert other.clicks is not None
            np.testing.assert_allclose(one.clicks.iou_KC, other.clicks.iou_KC, atol=0.01)


def test_the_evaluation_ends_in_one_line_when_a_process_dies() -> None:
    with pytest.raises(EvaluationError, match="one of 2 processes died"):
        list(measure_images(make_nothing, Drawings(), 3, 2))


def _read(folder: Path, figures: Figures) -> dict:
    """The JSON of a report, which names the plot too."""
    paths = write_report(folder, {"model": "random"}, figures, "random")
    assert [path.name for path in paths] == ["evaluation.json", "calibration.png"]
    return json.loads(paths[0].read_text(encoding="utf-8"))
