"""Reports of an evaluation: tables for the terminal, a JSON file, a plot."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from maskmill.evaluation.boundaries import BoundaryFigures
from maskmill.evaluation.calibration import draw_reliability
from maskmill.evaluation.figures import (
    SIZES,
    BoxFigures,
    CalibrationFigures,
    ClickFigures,
    Figures,
    RecallFigures,
    SizeFigures,
)
from maskmill.evaluation.proposals import LIMITS
from maskmill.pipeline.errors import StorageError

JSON_NAME = "evaluation.json"
PLOT_NAME = "calibration.png"


def write_report(folder: Path, facts: Mapping[str, Any], figures: Figures, title: str) -> list[Path]:
    """Writes `facts` and all figures as JSON, and a plot if calibration was measured. Returns their paths.

    Raises StorageError if a file cannot be written.
    """
    paths = [folder / JSON_NAME]
    try:
        # JSON has no NaN: undefined figures are None.
        text = json.dumps({**facts, "figures": asdict(figures)}, indent=2, allow_nan=False)
        paths[0].write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{paths[0]}: cannot be written: {error.strerror or error}") from error
    if figures.calibration is not None:
        paths.append(folder / PLOT_NAME)
        draw_reliability(figures.calibration.bins, title, paths[1])
    return paths


def tables(figures: Figures) -> Iterator[Table]:
    """One table per measure."""
    if figures.proposals is not None:
        yield _proposals(figures.proposals)
    if figures.clicks is not None:
        yield _clicks(figures.clicks)
    if figures.boxes is not None:
        yield _boxes(figures.boxes)
    if figures.sizes is not None:
        yield _sizes(figures.sizes)
    if figures.recall is not None:
        yield _recall(figures.recall)
    if figures.calibration is not None:
        yield _calibration(figures.calibration)
    if figures.edges is not None and figures.edges.bsds is not None:
        yield _edges(figures.edges.images, figures.edges.bsds)


def _proposals(figures: Mapping[str, Mapping[str, float | None]]) -> Table:
    table = _table("object proposals", "", *(f"AR@{limit}" for limit in LIMITS))
    for size, recalls in figures.items():
        table.add_row(size, *(_number(recalls[str(limit)]) for limit in LIMITS))
    return table


def _clicks(figures: ClickFigures) -> Table:
    table = _table(f"clicks on {figures.segments} segments", "", "mean IoU")
    table.add_row("1 click, best of three", _number(figures.oracle))
    for count, iou in figures.iou.items():
        table.add_row("1 click, top-ranked" if count == "1" else f"{count} clicks", _number(iou))
    return table


def _boxes(figures: BoxFigures) -> Table:
    table = _table(f"boxes around {figures.segments} segments", "", "mean IoU")
    table.add_row("1 box", _number(figures.iou))
    return table


def _sizes(figures: Mapping[str, SizeFigures]) -> Table:
    columns = ("segments", "1 click, best of three", "1 click, top-ranked", "1 box")
    table = _table("mean IoU by the size of the segment", "share of the image", *columns)
    lowest = 0.0
    for name, row in figures.items():
        scores = map(_number, (row.oracle, row.ranked_first, row.box))
        table.add_row(f"{name}, {lowest:.0%} to {SIZES[name]:.0%}", str(row.segments), *scores)
        lowest = SIZES[name]
    return table


def _recall(figures: Sequence[RecallFigures]) -> Table:
    table = _table("segment recall", "", "masks per image", "mean best IoU")
    for row in figures:
        name = row.masks_of if row.limit is None else f"{row.masks_of}, at most {row.limit}"
        table.add_row(name, f"{row.masks_per_image:.1f}", _number(row.recall))
    return table


def _calibration(figures: CalibrationFigures) -> Table:
    table = _table(f"calibration on {figures.masks} masks", "predicted IoU", "masks", "mean predicted", "mean true")
    for row in figures.bins:
        table.add_row(f"{row.low:.1f} to {row.high:.1f}", str(row.masks), _number(row.predicted), _number(row.true))
    table.caption = f"correlation {_number(figures.correlation)}"
    return table


def _edges(images: int, figures: BoundaryFigures) -> Table:
    table = _table(f"edges in {images} images", "ODS", "OIS", "AP", "R50")
    table.add_row(*map(_number, (figures.ods, figures.ois, figures.ap, figures.r50)))
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
