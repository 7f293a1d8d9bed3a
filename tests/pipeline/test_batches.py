"""The masks of a photograph do not depend on what is computed together with what, by the embedded model."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import skimage.data
import torch
from numpy.typing import NDArray

from maskmill.evaluation import overlap
from maskmill.model.checkpoint import load_model
from maskmill.model.network import Network
from maskmill.model.optimize import OptimizedNetwork, optimize
from maskmill.pipeline.config import GeneratorConfig
from maskmill.pipeline.generator import MaskGenerator
from maskmill.pipeline.records import ImageMasks, StepTimer

# Thresholds below the preset's: more masks to compare.
CONFIG = GeneratorConfig(
    points_per_side=6, pred_iou_thresh=0.05, stability_score_thresh=0.1, crop_n_layers=1, points_per_batch=16
)
CAT = skimage.data.chelsea()[60:200, 100:300]
COFFEE = skimage.data.coffee()[120:320, :260]


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    with torch_threads(1):
        yield


@pytest.fixture(scope="module")
def network() -> Network:
    return optimize(load_model("mini", None).network, "exact", "cpu")


@pytest.fixture(scope="module")
def expected(network: Network) -> ImageMasks:
    return generate(MaskGenerator(network, CONFIG), CAT)


def generate(generator: MaskGenerator, pixels_HW3: NDArray[np.uint8]) -> ImageMasks:
    return generator.generate(generator.prepare(pixels_HW3), StepTimer())


def assert_same(masks: ImageMasks, expected: ImageMasks) -> None:
    """Row by row, predicted IoUs to 1e-5, masks but for a pixel: products of other sizes may round otherwise."""
    assert len(masks) == len(expected) > 20
    np.testing.assert_array_equal(masks.points, expected.points)
    np.testing.assert_array_equal(masks.crop_boxes, expected.crop_boxes)
    np.testing.assert_allclose(masks.predicted_iou, expected.predicted_iou, atol=1e-5)
    np.testing.assert_allclose(masks.stability_score, expected.stability_score, atol=1e-3)
    iou_NN = overlap.iou(masks.rle_counts, expected.rle_counts, expected.height, expected.width)
    assert iou_NN.diagonal().min() >= 0.999


@pytest.mark.parametrize("points_per_batch", [1, 7, 64])
def test_masks_are_the_same_whatever_points_are_decoded_together(
    network: Network, expected: ImageMasks, points_per_batch: int
):
    config = replace(CONFIG, points_per_batch=points_per_batch)
    assert_same(generate(MaskGenerator(network, config), CAT), expected)


@pytest.mark.parametrize("views_per_batch", [2, 5])
def test_masks_are_the_same_whatever_views_are_encoded_together(
    network: Network, expected: ImageMasks, views_per_batch: int
):
    assert_same(generate(MaskGenerator(network, CONFIG, views_per_batch), CAT), expected)


def test_masks_are_the_same_when_there_are_more_threads(network: Network, expected: ImageMasks):
    with torch_threads(2):
        assert_same(generate(MaskGenerator(network, CONFIG), CAT), expected)


def test_masks_are_the_same_when_prompts_are_screened(expected: ImageMasks):
    screened = OptimizedNetwork(load_model("mini", None).network, torch.float32, screen_dtype=torch.bfloat16)
    assert_same(generate(MaskGenerator(screened, CONFIG), CAT), expected)


def test_masks_are_the_same_when_images_share_a_generator(network: Network, expected: ImageMasks):
    generator = MaskGenerator(network, CONFIG)
    with ThreadPoolExecutor(2) as threads:
        coffee, cat, again = threads.map(partial(generate, generator), (COFFEE, CAT, CAT))
    assert_same(cat, expected)
    assert_same(again, expected)
    assert_same(coffee, generate(generator, COFFEE))


@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_masks_on_a_gpu_are_nearly_all_those_on_the_cpu(expected: ImageMasks, precision: str, gpu: str):
    network = optimize(load_model("mini", None).network, precision, gpu)
    masks = generate(MaskGenerator(network, CONFIG), CAT)
    iou_NN = overlap.iou(masks.rle_counts, expected.rle_counts, expected.height, expected.width)
    assert abs(len(masks) - len(expected)) <= 1
    assert (iou_NN.max(axis=0) >= 0.9).mean() >= 0.95


def test_masks_are_the_same_bytes_whatever_photograph_came_before(network: Network, expected: ImageMasks):
    generator = MaskGenerator(network, CONFIG)
    generate(generator, COFFEE)
    masks = generate(generator, CAT)
    assert masks.rle_counts == expected.rle_counts
    for column in ("points", "crop_boxes", "predicted_iou", "stability_score"):
        np.testing.assert_array_equal(getattr(masks, column), getattr(expected, column))
