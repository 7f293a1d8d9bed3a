"""Summarises the scores of images as figures of a model: means over all segments, masks or images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from maskmill.evaluation import boundaries
from maskmill.evaluation.baselines import BASELINES
from maskmill.evaluation.calibration import Bin, correlation, reliability
from maskmill.evaluation.clicks import CLICKS, ClickScores
from maskmill.evaluation.image import MODEL, ImageScores
from maskmill.evaluation.proposals import average_recall
from maskmill.evaluation.recall import recall_at

# The limit of masks per image in the second row of the recall table.
MASK_LIMIT = 100


# Size ranges of segments: the largest share of the image that a segment of each range covers.
SIZES = {"small": 0.02, "medium": 0.1, "large": 1.0}


@dataclass(frozen=True)
class SizeFigures:
    """Mean IoUs over the segments of one size range. None if there are none, or the measure was not requested."""

    segments: int
    oracle: float | None  # one click, best of three masks
    ranked_first: float | None  # one click, the mask with the best predicted IoU
    box: float | None


@dataclass(frozen=True)
class ClickFigures:
    """Mean IoUs over segments. None if there are no segments."""

    segments: int
    oracle: float | None  # one click, best of three masks
    iou: dict[str, float | None]  # by number of clicks; "1": the mask with the best predicted IoU


@dataclass(frozen=True)
class BoxFigures:
    """Mean IoU over segments, one box each."""

    segments: int
    iou: float | None


@dataclass(frozen=True)
class RecallFigures:
    """Segment recall of the model or of a baseline, with at most `limit` masks per image (None: all masks)."""

    masks_of: str
    limit: int | None
    masks_per_image: float
    recall: float | None


@dataclass(frozen=True)
class CalibrationFigures:
    """Predicted against true IoU of the three masks of every first click.

    A click is ambiguous, so the true IoU is the best IoU with any annotated mask under the click. `correlation_clicked`
    uses the IoU with the segment that was clicked.
    """

    masks: int
    correlation: float | None
    correlation_clicked: float | None
    bins: tuple[Bin, ...]


@dataclass(frozen=True)
class EdgeFigures:
    """Edges in images that are covered by their annotations. None if there are no such images."""

    images: int
    bsds: boundaries.BoundaryFigures | None


@dataclass(frozen=True)
class Figures:
    """All figures. None for a measure that was not requested."""

    proposals: dict[str, dict[str, float | None]] | None
    clicks: ClickFigures | None
    boxes: BoxFigures | None
    sizes: dict[str, SizeFigures] | None  # clicks and boxes by the size of the segment, with the keys of SIZES
    recall: tuple[RecallFigures, ...] | None
    calibration: CalibrationFigures | None
    edges: EdgeFigures | None


def summarise(scores: Sequence[ImageScores], measures: Sequence[str]) -> Figures:
    """Summarises the scores of one or more images."""
    proposals = [score.proposals for score in scores if score.proposals is not None]
    clicks = [score.clicks for score in scores if score.clicks is not None]
    boxes = [score.boxes_K for score in scores if score.boxes_K is not None]
    return Figures(
        average_recall(proposals) if proposals else None,
        _clicks(clicks) if "clicks" in measures else None,
        _boxes(np.concatenate(boxes)) if boxes else None,
        _sizes(scores) if boxes or "clicks" in measures else None,
        _recall(scores) if scores[0].recall else None,
        _calibration(clicks) if "calibration" in measures else None,
        _edges(scores) if "edges" in measures else None,
    )


def _clicks(scores: Sequence[ClickScores]) -> ClickFigures:
    iou_KC = np.concatenate([score.iou_KC for score in scores])
    oracle_K = np.concatenate([score.oracle_K for score in scores])
    return ClickFigures(
        len(oracle_K), _mean(oracle_K), {str(count): _mean(iou_KC[:, c]) for c, count in enumerate(CLICKS)}
    )


def _boxes(iou_K: NDArray[np.float64]) -> BoxFigures:
    return BoxFigures(len(iou_K), _mean(iou_K))


def _sizes(scores: Sequence[ImageScores]) -> dict[str, SizeFigures]:
    share_K = np.concatenate([score.shares_K for score in scores])
    unknown_K = np.full(len(share_K), np.nan)
    clicks = [score.clicks for score in scores if score.clicks is not None]
    boxes = [score.boxes_K for score in scores if score.boxes_K is not None]
    oracle_K = np.concatenate([score.oracle_K for score in clicks]) if clicks else unknown_K
    first_K = np.concatenate([score.iou_KC[:, 0] for score in clicks]) if clicks else unknown_K
    box_K = np.concatenate(boxes) if boxes else unknown_K
    figures, lowest = {}, 0.0
    for name, highest in SIZES.items():
        chosen = (share_K > lowest) & (share_K <= highest)
        means = [_mean(iou_K[chosen & ~np.isnan(iou_K)]) for iou_K in (oracle_K, first_K, box_K)]
        figures[name] = SizeFigures(int(chosen.sum()), *means)
        lowest = highest
    return figures


def _recall(scores: Sequence[ImageScores]) -> tuple[RecallFigures, ...]:
    """Two rows for the model: all masks, the best MASK_LIMIT. Two per baseline: all masks, as many as the model."""
    rows: list[tuple[str, int | None]] = []
    curves = {name: [score.recall[name] for score in scores] for name in scores[0].recall}
    if MODEL in curves:
        rows += [(MODEL, None), (MODEL, MASK_LIMIT)]
    for name in [name for name in BASELINES if name in curves]:
        rows.append((name, None))
        if MODEL in curves:
            rows.append((name, round(recall_at(curves[MODEL]).masks_per_image)))
    figures = []
    for name, limit in rows:
        at_limit = recall_at(curves[name], limit)
        figures.append(RecallFigures(name, limit, at_limit.masks_per_image, at_limit.recall))
    return tuple(figures)


def _calibration(scores: Sequence[ClickScores]) -> CalibrationFigures:
    predicted_N, clicked_N, any_N = (
        np.concatenate([getattr(score, name).ravel() for score in scores])
        for name in ("predicted_K3", "clicked_K3", "any_K3")
    )
    return CalibrationFigures(
        len(predicted_N),
        correlation(predicted_N, any_N),
        correlation(predicted_N, clicked_N),
        reliability(predicted_N, any_N),
    )


def _edges(scores: Sequence[ImageScores]) -> EdgeFigures:
    counts = [score.edges for score in scores if score.edges is not None]
    return EdgeFigures(len(counts), boundaries.summarise(counts))


def _mean(values: NDArray[np.float64]) -> float | None:
    return float(values.mean()) if values.size else None
