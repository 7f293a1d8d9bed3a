"""Boxes around segments."""

from __future__ import annotations

import numpy as np

from maskmill.evaluation.boxes import measure_boxes
from tests.evaluation.drawings import ScriptedPredictor, annotated, rectangle

SEGMENT = rectangle(20, 30, slice(2, 11), slice(3, 12))
CORNER = rectangle(20, 30, slice(18, 20), slice(0, 1))


def test_a_box_holds_all_pixels_of_its_segment() -> None:
    predictor = ScriptedPredictor([([SEGMENT], [0.5])])
    np.testing.assert_allclose(measure_boxes(predictor, annotated([SEGMENT, CORNER]), [0, 1]), [1, 0])
    assert [call["box"] for call in predictor.asked] == [[3, 2, 12, 11], [0, 18, 1, 20]]
    assert not any(call["multimask"] for call in predictor.asked)
    assert measure_boxes(predictor, annotated([SEGMENT]), []).shape == (0,)
