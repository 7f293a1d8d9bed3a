"""Preprocessing equals the released code bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from maskmill.model.families import VARIANTS
from maskmill.model.frame import Frame
from maskmill.model.preprocess import normalise, preprocess
from testing.networks import SMALL_CONFIGS, random_network
from testing.oracles import ResizeLongestSide, published_sam

CONFIG = SMALL_CONFIGS["grid7"]
RELEASED = published_sam(random_network(CONFIG))
TRANSFORM = ResizeLongestSide(CONFIG.image_size)
# Smaller and larger than the input, wide, tall, square, and exactly its size.
SIZES = [(30, 50), (300, 217), (112, 112), (64, 112), (500, 20), (13, 400), (1, 1)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_preprocess_equals_released(height: int, width: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    resized = torch.from_numpy(TRANSFORM.apply_image(pixels)).permute(2, 0, 1)
    ours = preprocess(pixels, CONFIG)
    assert ours.dtype == torch.float32
    assert ours.shape == (3, CONFIG.image_size, CONFIG.image_size)
    assert torch.equal(ours, RELEASED.preprocess(resized))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_gpu_normalises_to_the_same_bits(height: int, width: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    resized = Frame(height, width, CONFIG.image_size).resize(pixels)
    assert torch.equal(normalise(resized.cuda(), CONFIG).cpu(), normalise(resized, CONFIG))


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_coordinates_equal_released(height: int, width: int) -> None:
    xy = np.random.default_rng(0).uniform(0, (width, height), (9, 2))
    ours = Frame(height, width, CONFIG.image_size).to_input(torch.from_numpy(xy))
    np.testing.assert_array_equal(ours.numpy(), TRANSFORM.apply_coords(xy, (height, width)))


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_upscaled_logits_equal_released(height: int, width: int) -> None:
    logits = torch.randn(4, CONFIG.mask_size, CONFIG.mask_size, generator=torch.Generator().manual_seed(0))
    theirs = RELEASED.postprocess_masks(logits[None], Frame(height, width, CONFIG.image_size).resized, (height, width))
    assert torch.equal(Frame(height, width, CONFIG.image_size).to_image_logits(logits), theirs[0])


def test_upscaled_logits_are_empty_when_there_are_no_masks() -> None:
    assert Frame(30, 50, 112).to_image_logits(torch.zeros(0, 28, 28)).shape == (0, 30, 50)


@pytest.mark.parametrize("image_size", [112, 1024])
def test_resized_size_equals_released(image_size: int) -> None:
    for height in range(1, 2000, 37):
        for width in (1, height, 333, 1777):
            # Where the released code rounds a side to nothing and fails, ours keeps one pixel.
            theirs = ResizeLongestSide.get_preprocess_shape(height, width, image_size)
            assert Frame(height, width, image_size).resized == tuple(max(1, side) for side in theirs)


def test_preprocess_keeps_a_pixel_when_the_image_is_a_thread() -> None:
    pixels = np.full((1, 4000, 3), 255, dtype=np.uint8)
    x = preprocess(pixels, VARIANTS["mini"])
    assert (x[:, 0] == 1).all()  # white: (255 - 127) / 128
    assert (x[:, 1:] == 0).all()
