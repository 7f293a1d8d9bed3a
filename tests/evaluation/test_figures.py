"""Means over the segments of all images."""

from __future__ import annotations

import numpy as np
import pytest

from maskmill.evaluation.clicks import CLICKS, ClickScores
from maskmill.evaluation.figures import SIZES, summarise
from maskmill.evaluation.image import ImageScores


def scores(shares: list[float], oracle: list[float], first: list[float], boxes: list[float]) -> ImageScores:
    iou_KC = np.tile(np.array(first)[:, None], len(CLICKS))
    three_K3 = np.zeros((len(shares), 3))
    clicks = ClickScores(iou_KC, np.array(oracle), three_K3, three_K3, three_K3)
    return ImageScores("image", np.array(shares), None, clicks, np.array(boxes), {}, None)


def test_figures_by_size_are_means_over_the_segments_of_each_size():
    images = [
        scores([0.01, 0.02, 0.5], oracle=[0.2, 0.4, 1.0], first=[0.1, 0.3, 0.9], boxes=[0.0, 0.2, 0.8]),
        scores([0.015], oracle=[0.6], first=[0.5], boxes=[0.4]),
    ]
    sizes = summarise(images, ["clicks", "boxes"]).sizes
    assert sizes is not None
    assert list(sizes) == list(SIZES)
    small, medium, large = sizes.values()
    assert small.segments == 3
    assert (small.oracle, small.ranked_first, small.box) == pytest.approx((0.4, 0.3, 0.2))
    assert (medium.segments, medium.oracle, medium.ranked_first, medium.box) == (0, None, None, None)
    assert (large.segments, large.oracle) == (1, 1.0)


def test_figures_by_size_are_left_out_of_measures_without_segments():
    images = [ImageScores("image", np.array([0.3]), None, None, None, {}, None)]
    assert summarise(images, ["recall"]).sizes is None
