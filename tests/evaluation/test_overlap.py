"""How much masks overlap."""

from __future__ import annotations

import numpy as np

from maskmill.evaluation import overlap
from maskmill.filters import rle
from tests.evaluation.drawings import rectangle

LEFT = rectangle(4, 6, slice(None), slice(0, 3))
TOP = rectangle(4, 6, slice(0, 2), slice(None))
NOTHING = np.zeros((4, 6), np.bool_)


def test_iou_is_shared_over_joint_pixels() -> None:
    ious = overlap.iou([rle.encode(LEFT), rle.encode(NOTHING)], [rle.encode(LEFT), rle.encode(TOP)], 4, 6)
    np.testing.assert_allclose(ious, [[1, 6 / 18], [0, 0]])


def test_iou_has_no_rows_or_columns_when_there_are_no_masks() -> None:
    assert overlap.iou([], [rle.encode(LEFT)], 4, 6).shape == (0, 1)
    assert overlap.iou([rle.encode(LEFT)], [], 4, 6).shape == (1, 0)


def test_contain_tells_the_masks_that_a_pixel_lies_in() -> None:
    counts = [rle.encode(mask) for mask in (LEFT, TOP, NOTHING)]
    assert overlap.contain(2, 1, counts, 4, 6).tolist() == [True, True, False]
    assert overlap.contain(3, 1, counts, 4, 6).tolist() == [False, True, False]
    assert overlap.contain(5, 3, counts, 4, 6).tolist() == [False, False, False]
    assert overlap.contain(0, 0, [], 4, 6).tolist() == []
