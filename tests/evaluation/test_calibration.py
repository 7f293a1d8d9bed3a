"""Predicted against true IoU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from maskmill.evaluation.calibration import Bin, correlation, draw_reliability, reliability
from maskmill.pipeline.errors import StorageError


def test_correlation_is_one_when_the_model_knows_and_minus_one_when_it_is_wrong() -> None:
    true = np.array([0.1, 0.5, 0.9])
    assert correlation(0.2 + true / 2, true) == pytest.approx(1)
    assert correlation(1 - true, true) == pytest.approx(-1)
    assert correlation(np.array([0.0, 0, 1, 1]), np.array([0.0, 1, 0, 1])) == pytest.approx(0)


def test_correlation_is_undefined_when_nothing_varies() -> None:
    assert correlation(np.array([0.5]), np.array([0.5])) is None
    assert correlation(np.array([0.5, 0.5]), np.array([0.1, 0.9])) is None
    assert correlation(np.array([0.1, 0.9]), np.array([0.5, 0.5])) is None


def test_bins_have_the_means_of_their_masks() -> None:
    bins = reliability(np.array([0.1, 0.15, 0.72]), np.array([0.3, 0.5, 0.7]))
    assert [b.masks for b in bins] == [0, 2, 0, 0, 0, 0, 0, 1, 0, 0]
    assert (bins[1].predicted, bins[1].true) == pytest.approx((0.125, 0.4))
    assert bins[0] == Bin(0.0, 0.1, 0, None, None)


def test_estimates_beyond_the_bounds_count_in_the_outermost_bins() -> None:
    bins = reliability(np.array([-0.2, 1.0, 1.3]), np.array([0.0, 1.0, 1.0]))
    assert [b.masks for b in bins] == [1, 0, 0, 0, 0, 0, 0, 0, 0, 2]


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "calibration.png"
    draw_reliability(reliability(np.array([0.1, 0.9]), np.array([0.3, 0.8])), "mini", path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_the_plot_fails_in_one_line_when_there_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot write a picture there: No such file"):
        draw_reliability([], "mini", tmp_path / "missing" / "calibration.png")
