"""Segment recall on masks whose IoUs can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from maskmill.evaluation.recall import RecallCurve, recall_at, recall_curve
from maskmill.filters import rle
from tests.evaluation.drawings import rectangle

LEFT = rle.encode(rectangle(4, 8, slice(None), slice(0, 4)))
RIGHT = rle.encode(rectangle(4, 8, slice(None), slice(4, 8)))
LEFT_HALF = rle.encode(rectangle(4, 8, slice(None), slice(0, 2)))
WHOLE = rle.encode(rectangle(4, 8, slice(None), slice(None)))


def test_each_segment_has_its_best_mask_among_the_first() -> None:
    curve = recall_curve([LEFT_HALF, WHOLE, LEFT], [LEFT, RIGHT], 4, 8)
    np.testing.assert_allclose(curve.best_N, [0.5 + 0, 0.5 + 0.5, 1 + 0.5])
    assert curve.segments == 2


def test_recall_is_one_when_the_masks_are_the_segments() -> None:
    assert recall_at([recall_curve([RIGHT, LEFT], [LEFT, RIGHT], 4, 8)]).recall == 1


def test_recall_is_zero_when_there_are_no_masks() -> None:
    figures = recall_at([recall_curve([], [LEFT, RIGHT], 4, 8)])
    assert (figures.recall, figures.masks_per_image) == (0, 0)


def test_recall_averages_over_segments_and_not_over_images() -> None:
    curves = [recall_curve([LEFT], [LEFT], 4, 8), recall_curve([], [LEFT, RIGHT, WHOLE], 4, 8)]
    figures = recall_at(curves)
    assert figures.recall == pytest.approx(1 / 4)
    assert figures.masks_per_image == 0.5


def test_a_limit_cuts_only_the_images_that_have_more_masks() -> None:
    curves = [recall_curve([LEFT_HALF, WHOLE, LEFT], [LEFT, RIGHT], 4, 8), recall_curve([LEFT], [LEFT], 4, 8)]
    figures = recall_at(curves, 2)
    assert figures.recall == pytest.approx((1 + 1) / 3)
    assert figures.masks_per_image == 1.5


def test_recall_is_undefined_when_there_is_no_segment() -> None:
    assert recall_at([RecallCurve(np.zeros(3), 0)]).recall is None
    assert recall_at([]).recall is None
