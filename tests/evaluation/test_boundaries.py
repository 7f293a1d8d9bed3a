"""The boundary benchmark on cases that can be worked out by hand."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from maskmill.evaluation.boundaries import (
    TOLERANCE,
    BoundaryCounts,
    count_matches,
    human_boundaries,
    mask_boundary,
    match,
    summarise,
    thresholds,
)
from tests.evaluation.drawings import annotated, rectangle

SIDE = 300
REACH = int(TOLERANCE * np.hypot(SIDE, SIDE))  # 3 pixels


def column(*xs: int) -> NDArray[np.bool_]:
    """Lines from top to bottom."""
    map_HW = np.zeros((SIDE, SIDE), np.bool_)
    map_HW[:, list(xs)] = True
    return map_HW


def counts(matched_human: list[int], human: int, matched_predicted: list[int], predicted: list[int]) -> BoundaryCounts:
    return BoundaryCounts(np.array(matched_human), human, np.array(matched_predicted), np.array(predicted))


def test_a_prediction_is_perfect_when_it_is_what_every_annotator_drew() -> None:
    drawn = rectangle(SIDE, SIDE, slice(40, 200), slice(60, 170)) | rectangle(
        SIDE, SIDE, slice(90, 250), slice(100, 220)
    )
    human = human_boundaries(annotated([drawn, ~drawn, drawn], annotators=[0, 0, 1]))

    figures = summarise([count_matches(human[0].astype(np.float32), human)])

    assert figures is not None
    assert (figures.ods, figures.ois, figures.ap, figures.r50) == pytest.approx((1, 1, 1, 1))


def test_a_shifted_line_matches_when_it_is_within_the_tolerance() -> None:
    figures = summarise([count_matches(column(100 + REACH).astype(np.float32), [column(100)])])

    assert figures is not None
    assert figures.ods == pytest.approx(1)


def test_a_shifted_line_matches_nothing_when_it_is_outside_the_tolerance() -> None:
    figures = summarise([count_matches(column(101 + REACH).astype(np.float32), [column(100)])])

    assert figures is not None
    assert (figures.ods, figures.ois, figures.ap, figures.r50) == (0, 0, 0, 0)


def test_the_nearer_line_matches_when_there_are_two_for_one() -> None:
    predicted, human = match(column(99, 102), column(100), REACH)

    assert (predicted == column(99)).all()
    assert (human == column(100)).all()


def test_a_doubled_line_halves_precision_when_all_annotators_drew_one() -> None:
    figures = summarise([count_matches(column(99, 102).astype(np.float32), [column(100), column(100)])])

    assert figures is not None
    assert figures.ods == pytest.approx(2 / 3)  # recall 1, precision 1/2
    assert figures.ap == pytest.approx(1 / 2)
    assert figures.r50 == pytest.approx(1)


def test_a_line_counts_as_right_when_one_of_two_annotators_drew_it() -> None:
    figures = summarise([count_matches(column(50, 250).astype(np.float32), [column(50), column(50, 250)])])

    assert figures is not None
    assert figures.ods == pytest.approx(1)
    figures = summarise([count_matches(column(50).astype(np.float32), [column(50), column(50, 250)])])
    assert figures is not None
    assert figures.ods == pytest.approx(0.8)  # precision 1, recall 2/3


def test_a_matching_gives_way_when_more_pixels_fit_that_way() -> None:
    # The middle one is nearest to the first human pixel; yet only if it takes the second can both have one.
    predicted, human = np.zeros((1, 20), np.bool_), np.zeros((1, 20), np.bool_)
    predicted[0, [4, 8]] = True
    human[0, [7, 11]] = True

    matched_predicted, matched_human = match(predicted, human, 3)

    assert (matched_predicted == predicted).all()
    assert (matched_human == human).all()


@settings(deadline=None, max_examples=60)
@given(
    st.sets(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=5),
    st.sets(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=5),
    st.floats(0.5, 4),
)
def test_as_many_pixels_are_matched_as_any_assignment_could(
    predicted: set[tuple[int, int]], human: set[tuple[int, int]], tolerance: float
) -> None:
    few, many = sorted((sorted(predicted), sorted(human)), key=len)
    most = max(
        sum(np.hypot(a[0] - b[0], a[1] - b[1]) <= tolerance for a, b in zip(few, chosen, strict=True))
        for chosen in permutations(many, len(few))
    )
    predicted_HW, human_HW = np.zeros((6, 6), np.bool_), np.zeros((6, 6), np.bool_)
    for map_HW, pixels in ((predicted_HW, predicted), (human_HW, human)):
        for pixel in pixels:
            map_HW[pixel] = True

    matched_predicted, matched_human = match(predicted_HW, human_HW, tolerance)

    assert matched_predicted.sum() == matched_human.sum() == most
    assert not (matched_predicted & ~predicted_HW).any()
    assert not (matched_human & ~human_HW).any()


def test_figures_are_zero_when_nothing_is_predicted() -> None:
    figures = summarise([count_matches(np.zeros((SIDE, SIDE), np.float32), [column(100)])])

    assert figures is not None
    assert (figures.ods, figures.ois, figures.ap, figures.r50) == (0, 0, 0, 0)


def test_there_are_no_figures_when_people_drew_no_boundary() -> None:
    everything = annotated([np.ones((SIDE, SIDE), np.bool_)])

    assert summarise([count_matches(column(9).astype(np.float32), human_boundaries(everything))]) is None
    assert summarise([]) is None


def test_figures_follow_from_the_curve_when_it_is_known() -> None:
    # Recall 1, 1/2, 1/4 at precision 1/2, 3/4, 1.
    figures = summarise([counts([100, 50, 25], 100, [100, 45, 20], [200, 60, 20])])

    assert figures is not None
    # Trapezoids: 1 up to a recall of 1/4, then down to 3/4 at 1/2 and to 1/2 at 1; sampled at 101 recalls.
    assert figures.ap == pytest.approx(0.25 + 0.25 * 0.875 + 0.5 * 0.625, abs=0.01)
    assert figures.r50 == pytest.approx(1)
    assert figures.ois == pytest.approx(2 / 3)
    # Between the thresholds a quarter and a half: recall 1/2 + s/2 and precision 3/4 - s/4, best at s = 0.66.
    assert figures.ods == pytest.approx(2 * 0.83 * 0.585 / (0.83 + 0.585), abs=1e-4)
    assert figures.threshold == pytest.approx(0.335, abs=0.005)


def test_recall_at_half_precision_lies_between_thresholds_when_the_curve_crosses_there() -> None:
    figures = summarise([counts([80, 40], 100, [40, 40], [100, 66 - 1])])

    assert figures is not None
    share = (40 / 65 - 0.5) / (40 / 65 - 0.4)
    assert figures.r50 == pytest.approx(0.4 + share * 0.4, abs=0.005)


def test_ois_chooses_a_threshold_per_image_when_images_differ() -> None:
    # Either image is perfect at one of the thresholds, and has nothing right at the other.
    first = counts([100, 0], 100, [100, 0], [100, 50])
    second = counts([0, 100], 100, [0, 100], [50, 100])

    figures = summarise([first, second])

    assert figures is not None
    assert figures.ois == pytest.approx(1)
    assert figures.ods < 0.6


def test_precision_grows_with_the_threshold_when_wrong_edges_are_weaker() -> None:
    edges_HW = np.maximum(column(100) * np.float32(0.95), column(200) * np.float32(0.45))

    result = count_matches(edges_HW, [column(100)], threshold_count=9)

    weak, strong = thresholds(9) <= 0.4, thresholds(9) <= 0.9
    assert result.predicted_T.tolist() == [SIDE * (int(a) + int(b)) for a, b in zip(weak, strong, strict=True)]
    assert (result.matched_predicted_T[strong] == SIDE).all()


def test_edges_as_thick_as_a_finger_count_once_when_they_are_thinned() -> None:
    thick = column(*range(96, 105)).astype(np.float32)

    result = count_matches(thick, [column(100)], threshold_count=1)

    assert result.predicted_T[0] == pytest.approx(SIDE, rel=0.05)
    assert result.matched_predicted_T[0] == pytest.approx(SIDE, rel=0.05)


def test_the_boundary_lies_between_two_segments_when_both_are_masks() -> None:
    left = rectangle(6, 8, slice(0, 6), slice(0, 3))

    assert (mask_boundary(left) == mask_boundary(~left)).all()
    assert (mask_boundary(left) == rectangle(6, 8, slice(0, 6), slice(2, 3))).all()


def test_annotators_have_a_map_each_and_crowds_none_when_masks_overlap() -> None:
    small, large = rectangle(20, 30, slice(5, 9), slice(5, 12)), rectangle(20, 30, slice(2, 18), slice(3, 20))
    crowd = rectangle(20, 30, slice(0, 20), slice(24, 30))

    maps = human_boundaries(annotated([small, large, large, crowd], [3, 3, 7, 7], [False, False, False, True]))

    assert len(maps) == 2
    assert maps[0].sum() > maps[1].sum() > 0
    assert not any(map_HW[:, 22:].any() for map_HW in maps)
