"""Where clicks are placed, and what is measured of the masks they give."""

from __future__ import annotations

import numpy as np
import pytest

from maskmill.evaluation.clicks import CLICKS, Click, first_click, iou, measure_clicks, next_click
from tests.evaluation.drawings import ScriptedPredictor, annotated, rectangle

SEGMENT = rectangle(20, 30, slice(2, 11), slice(3, 12))  # 9 x 9
LEFT_THIRD = rectangle(20, 30, slice(2, 11), slice(3, 6))
TOP_THIRD = rectangle(20, 30, slice(2, 5), slice(3, 12))
SQUARE_IN_IT = rectangle(20, 30, slice(3, 5), slice(4, 6))
NOTHING = np.zeros((20, 30), np.bool_)


def test_first_click_is_the_middle_of_a_square() -> None:
    assert first_click(SEGMENT) == Click(7, 6, inside=True)


def test_first_click_is_inside_when_the_middle_is_a_hole() -> None:
    ring = SEGMENT & ~rectangle(20, 30, slice(4, 9), slice(5, 10))
    click = first_click(ring)
    assert ring[click.y, click.x]


def test_first_click_keeps_away_from_the_edge_of_the_image() -> None:
    assert first_click(rectangle(9, 9, slice(None), slice(None))) == Click(4, 4, inside=True)


def test_next_click_is_the_middle_of_what_is_missing() -> None:
    assert next_click(LEFT_THIRD, SEGMENT) == Click(8, 4, inside=True)  # the first of the deepest pixels, row by row


def test_next_click_is_outside_when_too_much_is_deeper_than_missing() -> None:
    too_much = rectangle(20, 30, slice(2, 11), slice(3, 24))
    too_much[2, 3] = False
    assert next_click(too_much, SEGMENT) == Click(16, 6, inside=False)  # the first of the deepest, again


def test_there_is_no_next_click_when_nothing_is_wrong() -> None:
    assert next_click(SEGMENT, SEGMENT) is None


def test_iou_of_masks_counts_pixels() -> None:
    assert iou(LEFT_THIRD, SEGMENT) == pytest.approx(1 / 3)
    assert iou(LEFT_THIRD, TOP_THIRD) == pytest.approx(9 / 45)
    assert iou(NOTHING, SEGMENT) == 0


def test_the_first_click_is_scored_by_rank_and_by_the_best_of_three() -> None:
    predictor = ScriptedPredictor([([LEFT_THIRD, SEGMENT, NOTHING], [0.9, 0.5, 0.1])])
    scores = measure_clicks(predictor, annotated([SEGMENT]), [0], last=1)
    np.testing.assert_allclose(scores.iou_KC[:, 0], [1 / 3])
    assert np.isnan(scores.iou_KC[:, 1:]).all()
    np.testing.assert_allclose(scores.oracle_K, [1])
    np.testing.assert_allclose(scores.predicted_K3, [[0.9, 0.5, 0.1]])
    np.testing.assert_allclose(scores.clicked_K3, [[1 / 3, 1, 0]])
    assert predictor.asked == [{"points": [(7, 6)], "labels": [1], "box": None, "mask_input": None, "multimask": True}]


def test_a_mask_counts_for_any_annotated_mask_under_the_click_but_crowds() -> None:
    whole = np.ones((20, 30), np.bool_)
    elsewhere = rectangle(20, 30, slice(12, 20), slice(20, 30))
    image = annotated([SEGMENT, whole, elsewhere, LEFT_THIRD | TOP_THIRD], crowds=[False, False, False, True])
    predictor = ScriptedPredictor([([whole, elsewhere, LEFT_THIRD], [0.9, 0.5, 0.1])])
    scores = measure_clicks(predictor, image, [0], last=1)
    # The third is part of the first; only the crowd, which the click is not on either, is nearer.
    np.testing.assert_allclose(scores.any_K3, [[1, 80 / 600, 1 / 3]])
    np.testing.assert_allclose(scores.clicked_K3, [[81 / 600, 0, 1 / 3]])


def test_later_clicks_mend_the_mask_before_with_its_logits() -> None:
    predictor = ScriptedPredictor(
        [
            ([NOTHING, LEFT_THIRD, NOTHING], [0.1, 0.9, 0.2]),
            ([LEFT_THIRD | TOP_THIRD], [0.5]),
            ([SEGMENT], [0.5]),
        ]
    )
    scores = measure_clicks(predictor, annotated([SEGMENT]), [0])
    np.testing.assert_allclose(scores.iou_KC, [[1 / 3, 5 / 9, 1, 1, 1]])
    assert len(predictor.asked) == 3  # nothing is left to click on
    _, second, third = predictor.asked
    assert second["points"] == [(7, 6), (8, 4)]
    assert second["labels"] == [1, 1]
    assert second["multimask"] is False
    assert (second["mask_input"] == 1).all()  # those of the mask with the best predicted IoU
    assert len(third["points"]) == 3
    assert (third["mask_input"] == 10).all()


def test_scores_are_zero_when_the_model_finds_nothing() -> None:
    predictor = ScriptedPredictor([([NOTHING] * 3, [0.9, 0.5, 0.1]), ([NOTHING], [0.5])])
    scores = measure_clicks(predictor, annotated([SEGMENT, LEFT_THIRD]), [0, 1])
    assert scores.iou_KC.shape == (2, len(CLICKS))
    assert not scores.iou_KC.any()
    assert not scores.oracle_K.any()
    assert not scores.any_K3.any()


def test_there_are_no_rows_when_there_are_no_segments() -> None:
    scores = measure_clicks(ScriptedPredictor([]), annotated([SEGMENT]), [])
    assert scores.iou_KC.shape == (0, len(CLICKS))
    assert scores.any_K3.shape == (0, 3)
