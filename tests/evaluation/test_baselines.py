"""Proposals to compare with: what they find, and in which order."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from maskmill.evaluation.baselines import BASELINES, FELZENSZWALB_LONGEST_SIDE, felzenszwalb_masks, grid_masks
from maskmill.filters import rle


def _decode(counts: list[bytes], pixels_HW3: NDArray[np.uint8]) -> list[NDArray[np.bool_]]:
    return [rle.decode(each, *pixels_HW3.shape[:2]) for each in counts]


def _two_halves(height: int, width: int) -> NDArray[np.uint8]:
    pixels_HW3 = np.zeros((height, width, 3), np.uint8)
    pixels_HW3[:, width // 2 :] = (250, 240, 30)
    return pixels_HW3


@pytest.mark.parametrize("width", [96, FELZENSZWALB_LONGEST_SIDE + 101])
def test_felzenszwalb_finds_both_halves_when_an_image_has_two_colours(width: int) -> None:
    pixels_HW3 = _two_halves(48, width)
    right_HW = pixels_HW3.any(axis=2)

    masks = _decode(felzenszwalb_masks(pixels_HW3), pixels_HW3)

    for wanted_HW in (right_HW, ~right_HW):
        ious = [(mask & wanted_HW).sum() / (mask | wanted_HW).sum() for mask in masks]
        assert max(ious) > 0.9


def test_felzenszwalb_gives_a_segment_once_when_all_scales_agree() -> None:
    counts = felzenszwalb_masks(np.full((40, 60, 3), 128, np.uint8))

    assert [mask.all() for mask in _decode(counts, np.empty((40, 60, 3), np.uint8))] == [True]


def test_felzenszwalb_starts_with_the_coarsest_segments_when_scales_differ() -> None:
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 255, (5, 8, 3)).repeat(16, axis=0).repeat(16, axis=1)
    pixels_HW3 = np.clip(blocks * 0.2 + rng.normal(100, 6, blocks.shape), 0, 255).astype(np.uint8)

    areas = [mask.sum() for mask in _decode(felzenszwalb_masks(pixels_HW3), pixels_HW3)]

    first_finer = next(i for i in range(len(areas)) if sum(areas[: i + 1]) >= pixels_HW3[..., 0].size) + 1
    assert first_finer < len(areas)
    assert areas[:first_finer] == sorted(areas[:first_finer], reverse=True)
    assert np.mean(areas[:first_finer]) > np.mean(areas[first_finer:])


def test_every_grid_covers_the_image_once_when_sides_are_odd() -> None:
    pixels_HW3 = np.zeros((31, 47, 3), np.uint8)

    masks = _decode(grid_masks(pixels_HW3), pixels_HW3)

    assert len(masks) == 66
    assert (np.sum(masks, axis=0) == 5).all()
    assert masks[0].all()


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 2)])
def test_masks_are_never_empty_when_an_image_is_tiny(name: str, size: tuple[int, int]) -> None:
    pixels_HW3 = np.zeros((*size, 3), np.uint8)

    masks = _decode(BASELINES[name](pixels_HW3), pixels_HW3)

    assert masks
    assert all(mask.any() for mask in masks)
