"""Edges from the masks of a grid of clicks."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from maskmill.evaluation.edges import edge_map, mask_edges, thin_edges
from testing.colour_sam import ColourSam
from tests.evaluation.drawings import rectangle

MASK = rectangle(40, 60, slice(10, 25), slice(20, 45))


def ramp(width: int, middle: float, steepness: float) -> NDArray[np.float32]:
    """A probability map (20, width) that rises from left to right and is a half at `middle`."""
    row = 1 / (1 + np.exp(-steepness * (np.arange(width) - middle)))
    return np.tile(row, (20, 1)).astype(np.float32)


def test_edges_lie_just_outside_a_mask_when_it_is_sharp() -> None:
    edges_HW = mask_edges([MASK.astype(np.float32)], *MASK.shape)

    grown = np.zeros_like(MASK)
    grown[9:26, 20:45], grown[10:25, 19:46] = True, True
    assert ((edges_HW > 0) == (grown & ~MASK)).all()
    assert edges_HW.max() == 1


def test_the_surer_mask_has_the_stronger_edge_when_masks_differ() -> None:
    edges_HW = mask_edges([ramp(60, 14.6, 0.5), ramp(60, 40.6, 4.0)], 20, 60)

    assert edges_HW[10, 14] > 0
    assert edges_HW[10, 40] == 1
    assert edges_HW[10, 14] < 0.5
    assert np.count_nonzero(edges_HW) == 40


def test_the_strongest_counts_when_masks_share_an_outline() -> None:
    weak, strong = ramp(60, 29.6, 0.5), ramp(60, 29.6, 4.0)

    alone, together = mask_edges([strong], 20, 60), mask_edges([weak, strong, weak], 20, 60)

    assert (alone == together).all()


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_there_are_no_edges_when_a_mask_is_empty_or_all_of_the_image(probability: float) -> None:
    flat_HW = np.full((7, 9), probability, np.float32)

    assert not mask_edges([flat_HW], 7, 9).any()
    assert not mask_edges([], 7, 9).any()


@pytest.mark.parametrize("angle", [0, 0.4, 0.8, np.pi / 2, 2.2, 3.0])
def test_a_broad_line_becomes_thin_and_keeps_its_place_whatever_its_direction(angle: float) -> None:
    y_HW, x_HW = np.mgrid[:80, :80] - 39.7
    distance_HW = x_HW * np.sin(angle) - y_HW * np.cos(angle)
    broad_HW = np.exp(-(distance_HW**2) / 8).astype(np.float32)

    inside = slice(10, 70), slice(10, 70)
    thin_HW, away_HW = thin_edges(broad_HW)[inside], np.abs(distance_HW[inside])

    assert away_HW[thin_HW > 0.1].max() < 1
    assert (thin_HW[away_HW < 0.35] > 0.9).all()


def test_no_edge_stands_alone_when_the_picture_has_one_line() -> None:
    line_HW = np.zeros((30, 30), np.float32)
    line_HW[:, 12] = 1

    assert (thin_edges(line_HW) == line_HW).all()


def test_the_strongest_edge_is_where_colours_meet_when_a_photograph_has_two() -> None:
    pixels_HW3 = np.full((100, 140, 3), (200, 30, 40), np.uint8)
    pixels_HW3[:, 80:] = (10, 80, 220)

    edges_HW = edge_map(ColourSam(), pixels_HW3)

    assert edges_HW.shape == (100, 140)
    assert edges_HW.dtype == np.float32
    assert edges_HW.min() == 0
    assert edges_HW.max() == 1
    # Masks have four pixels for one of the input, which is larger than the image: right to a pixel.
    assert np.abs(edges_HW[5:95].argmax(axis=1) - 79.5).max() <= 2.5
