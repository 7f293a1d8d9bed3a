"""Calibration: the IoU that a model predicts for its masks against the true IoU.

Shapes: N masks, of the first click on each segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from maskmill.pipeline.errors import StorageError

BINS = 10


@dataclass(frozen=True)
class Bin:
    """The masks with a predicted IoU from `low` to `high`. The means are None if there are none."""

    low: float
    high: float
    masks: int
    predicted: float | None
    true: float | None


def correlation(predicted_N: NDArray[np.float64], true_N: NDArray[np.float64]) -> float | None:
    """Pearson's correlation. None if it is undefined: for fewer than two masks, or if one of the IoUs is constant."""
    if len(true_N) < 2 or np.ptp(predicted_N) == 0 or np.ptp(true_N) == 0:
        return None
    return float(np.corrcoef(predicted_N, true_N)[0, 1])


def reliability(predicted_N: NDArray[np.float64], true_N: NDArray[np.float64]) -> tuple[Bin, ...]:
    """Mean predicted and true IoU in bins of equal width; estimates outside 0..1 count in the outermost bins."""
    bin_N = np.clip(np.floor(predicted_N * BINS), 0, BINS - 1)
    bins = []
    for number in range(BINS):
        inside_N = bin_N == number
        masks = int(np.count_nonzero(inside_N))
        means = (float(predicted_N[inside_N].mean()), float(true_N[inside_N].mean())) if masks else (None, None)
        bins.append(Bin(number / BINS, (number + 1) / BINS, masks, *means))
    return tuple(bins)


def draw_reliability(bins: Sequence[Bin], title: str, path: Path) -> None:
    """Writes a PNG: the bins above a histogram of their masks. Raises StorageError if it cannot be written."""
    # matplotlib takes seconds to import and is an optional dependency.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 6), layout="constrained")
    curve, histogram = FigureCanvasAgg(figure).figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    filled = [b for b in bins if b.masks]
    curve.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    curve.plot([b.predicted for b in filled], [b.true for b in filled], marker="o")
    curve.set(ylabel="true IoU", xlim=(0, 1), ylim=(0, 1), aspect="equal", title=title)
    histogram.bar([b.low for b in bins], [b.masks for b in bins], width=1 / BINS, align="edge", edgecolor="white")
    histogram.set(xlabel="predicted IoU", ylabel="masks")
    try:
        figure.savefig(path, format="png", dpi=120)
    except OSError as error:
        raise StorageError(f"{path}: cannot write a picture there: {error.strerror or error}") from error
