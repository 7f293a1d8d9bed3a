import numpy as np
import pytest
import torch

from maskmill.filters import rle
from maskmill.filters.regions import edit_logits, fill_small_holes, remove_small_islands, remove_small_regions


def _mask(*rows: str) -> np.ndarray:
    return np.array([[character == "#" for character in row] for row in rows])


RING = _mask(
    "......",
    ".####.",
    ".#..#.",
    ".####.",
    "......",
)


def test_hole_is_filled_when_below_the_limit():
    mask_HW, changed = fill_small_holes(RING, min_area=3)
    assert changed
    assert mask_HW.sum() == 12
    assert mask_HW[2, 2]


def test_hole_stays_when_at_the_limit():
    mask_HW, changed = fill_small_holes(RING, min_area=2)
    assert not changed
    assert (mask_HW == RING).all()


def test_background_at_the_border_counts_as_a_hole():
    mask_HW, changed = fill_small_holes(_mask("#.", "##"), min_area=2)
    assert changed
    assert mask_HW.all()


def test_regions_connect_over_corners():
    diagonal = _mask("#..", ".#.", "..#")
    mask_HW, changed = remove_small_islands(diagonal, min_area=3, keep_largest=False)
    assert not changed
    assert (mask_HW == diagonal).all()
    # Also holes: the two of this one touch at a corner.
    holes = _mask("####", "#.##", "##.#", "####")
    assert not fill_small_holes(holes, min_area=2)[1]


def test_island_is_removed_when_below_the_limit():
    mask_HW, changed = remove_small_islands(_mask("##..#", "##..#"), min_area=3, keep_largest=True)
    assert changed
    assert (mask_HW == _mask("##...", "##...")).all()


ALL_SMALL = _mask("##..#", "##...")


def test_largest_island_stays_when_all_are_below_the_limit():
    mask_HW, changed = remove_small_islands(ALL_SMALL, min_area=9, keep_largest=True)
    assert changed
    assert (mask_HW == _mask("##...", "##...")).all()


def test_nothing_stays_when_all_are_below_the_limit_and_the_largest_is_not_kept():
    mask_HW, changed = remove_small_islands(ALL_SMALL, min_area=9, keep_largest=False)
    assert changed
    assert not mask_HW.any()


def test_single_island_counts_as_changed_when_below_the_limit():
    # The published code says so, although it keeps every pixel; its last NMS then ranks the mask lower.
    mask_HW, changed = remove_small_islands(_mask("##"), min_area=9, keep_largest=True)
    assert changed
    assert mask_HW.all()


@pytest.mark.parametrize("keep_largest", [True, False])
def test_empty_mask_stays_as_it_is(keep_largest):
    mask_HW, changed = remove_small_islands(np.zeros((2, 3), bool), min_area=9, keep_largest=keep_largest)
    assert not changed
    assert not mask_HW.any()


@pytest.mark.parametrize("keep_largest", [True, False])
@pytest.mark.parametrize("seed", range(40))
def test_both_at_once_see_what_the_whole_image_shows(seed, keep_largest):
    random = np.random.default_rng(seed)
    height, width = random.integers(4, 40, 2).tolist()
    mask_HW = np.zeros((height, width), bool)
    y, x = (random.integers(0, side) for side in mask_HW.shape)
    part_HW = mask_HW[y : y + random.integers(1, 20), x : x + random.integers(1, 20)]
    part_HW[:] = random.random(part_HW.shape) < random.choice([0.1, 0.5, 0.9])
    min_area = int(random.integers(2, 30))
    filled_HW, had_holes = fill_small_holes(mask_HW, min_area)
    expected_HW, had_islands = remove_small_islands(filled_HW, min_area, keep_largest)
    counts, edited = remove_small_regions(rle.encode(mask_HW), height, width, min_area, keep_largest)
    assert counts == rle.encode(expected_HW)
    assert edited == (had_holes or had_islands)


def test_small_regions_of_logits_are_edited_when_at_the_limit():
    # A hole of 2 logits, an island of 1 and one of 3.
    mask_hw = _mask(
        "#####....",
        "#..##..#.",
        "#####....",
        "#####...#",
        "#####..##",
    )
    logits_hw = torch.where(torch.from_numpy(mask_hw), 1.0, -1.0)
    edited_2hw = edit_logits(torch.stack([logits_hw, -logits_hw]), max_area=2)
    expected_hw = logits_hw.clone()
    expected_hw[1, 1:3] = 10
    expected_hw[1, 7] = -10
    assert torch.equal(edited_2hw[0], expected_hw)
    # In the inverse mask, the hole is an island and the islands are holes.
    assert torch.equal(edited_2hw[1], -expected_hw)
