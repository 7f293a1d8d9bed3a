"""Scenes, and the examples made from them."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskmill.model.frame import Frame
from maskmill.model.preprocess import preprocess
from maskmill.model.training.augment import LABEL_STRIDE, augment, fit, paste
from maskmill.model.training.data import LabelledImage
from maskmill.model.training.prompts import normalise
from maskmill.model.training.scenes import GROUPS, OBJECTS, PARTS, Scenes, draw_scene
from tests.model.training.tiny import TINY, squares


def test_scene_is_the_same_when_the_seed_is():
    first, again, other = draw_scene(3, 96), draw_scene(3, 96), draw_scene(4, 96)
    assert np.array_equal(first.pixels_HW3, again.pixels_HW3)
    assert np.array_equal(first.maps_AHW, again.maps_AHW)
    assert first.pixels_HW3.shape != other.pixels_HW3.shape or not np.array_equal(first.pixels_HW3, other.pixels_HW3)


@pytest.mark.parametrize("seed", range(6))
def test_scene_labels_every_pixel_in_every_map(seed: int):
    scene = draw_scene(seed, 96)
    assert scene.maps_AHW.shape == (3, *scene.pixels_HW3.shape[:2])
    assert scene.maps_AHW.min() > 0
    assert max(scene.pixels_HW3.shape) == 96


@pytest.mark.parametrize("seed", range(6))
def test_scene_levels_are_nested(seed: int):
    maps = draw_scene(seed, 96).maps_AHW
    for finer, coarser in ((PARTS, OBJECTS), (OBJECTS, GROUPS)):
        for label in np.unique(maps[finer]):
            assert len(np.unique(maps[coarser][maps[finer] == label])) == 1


def test_scene_outlines_lie_where_the_picture_changes():
    """Neighbouring pixels differ more across an outline than within a segment."""
    across, within = [], []
    for seed in range(8):
        scene = draw_scene(seed, 128)
        change = np.abs(np.diff(scene.pixels_HW3.astype(float), axis=1)).mean(axis=2)
        outline = np.diff(scene.maps_AHW[PARTS], axis=1) != 0
        across.append(change[outline].mean())
        within.append(change[~outline].mean())
    assert np.mean(across) > 2 * np.mean(within)


def test_scenes_are_kept_once_drawn_while_there_is_room():
    drawn = [draw_scene(seed, 64) for seed in (5, 6, 7)]
    # Pixels and three maps of bytes.
    room = sum(6 * scene.maps_AHW[0].size for scene in drawn[:2])
    scenes = Scenes(count=3, first_seed=5, longest_side=64, cache_bytes=room)
    assert len(scenes) == 3
    for index, kept in enumerate((True, True, False)):
        first, again = scenes[index], scenes[index]
        assert (first.pixels_HW3 is again.pixels_HW3) == kept
        for scene in (first, again):
            assert np.array_equal(scene.pixels_HW3, drawn[index].pixels_HW3)
            assert np.array_equal(scene.maps_AHW, drawn[index].maps_AHW)


def test_scenes_of_a_recipe_take_no_more_memory_than_their_limit():
    """Arrays allocated, in a process that has seen many more scenes than there is room for."""
    scenes = Scenes(count=60, first_seed=0, longest_side=96, cache_bytes=2**20)
    scenes[0]  # loads the photographs that textures are cut from
    tracemalloc.start()
    for index in range(60):
        scenes[index]
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 2**19 < kept < 1.2 * 2**20


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.integers(0, 2**31))
def test_fitted_example_is_what_the_network_gets_at_inference(height: int, width: int, seed: int):
    pixels_HW3 = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    example = fit(LabelledImage(pixels_HW3, np.ones((1, height, width), np.int32)), TINY.image_size)
    assert (example.height, example.width) == Frame(height, width, TINY.image_size).resized
    assert torch.equal(normalise([example], TINY)[0], preprocess(pixels_HW3, TINY))
    assert example.maps_Ass.any(axis=0).sum() == (example.height // LABEL_STRIDE) * (example.width // LABEL_STRIDE)


def test_fitted_example_keeps_proportions_and_pads():
    image = LabelledImage(np.full((50, 100, 3), 200, np.uint8), np.ones((1, 50, 100), np.int32))
    example = fit(image, 64)
    assert (example.height, example.width) == (32, 64)
    assert (example.pixels_SS3[:32] == 200).all()
    assert not example.pixels_SS3[32:].any()
    assert (example.maps_Ass[0, : 32 // LABEL_STRIDE] == 1).all()
    assert not example.maps_Ass[0, 32 // LABEL_STRIDE :].any()


def test_augmented_labels_move_with_the_pixels():
    """Colours change, but a label's pixels stay of one colour."""
    for seed in range(20):
        example = augment(squares(), 64, np.random.default_rng(seed))
        pixels_ss3 = example.pixels_SS3[::LABEL_STRIDE, ::LABEL_STRIDE].astype(float)
        for label in (1, 2, 3):
            inside = pixels_ss3[example.maps_Ass[0] == label]
            if len(inside) > 40:
                assert np.median(np.abs(inside - np.median(inside, axis=0))) < 6


def test_pasted_segment_is_one_in_all_maps_with_the_pixels_it_had():
    square = squares()
    two_maps = LabelledImage(np.full((40, 50, 3), 10, np.uint8), np.ones((2, 40, 50), np.int32))
    for seed in range(20):
        pasted = paste(two_maps, square, np.random.default_rng(seed))
        changed_HW = (pasted.pixels_HW3 != 10).any(axis=2)
        # The red square or the blue one, but not the grey, which is too large.
        assert changed_HW.sum() in (24 * 24, 24 * 30)
        assert len(np.unique(pasted.pixels_HW3[changed_HW], axis=0)) == 1
        assert (pasted.maps_AHW == np.where(changed_HW, 2, 1)).all()
    assert (two_maps.maps_AHW == 1).all()


def test_nothing_is_pasted_from_an_image_without_small_segments():
    image, whole = squares(), LabelledImage(np.zeros((8, 8, 3), np.uint8), np.ones((1, 8, 8), np.int32))
    assert paste(image, whole, np.random.default_rng(0)) is image
