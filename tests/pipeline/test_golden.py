"""The generator against the published one: the same masks, photograph by photograph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import skimage.data
import torch
from numpy.typing import NDArray
from PIL import Image

from maskmill.filters import rle
from maskmill.model.checkpoint import load_model
from maskmill.model.families.sam1.config import SamConfig
from maskmill.model.network import Network
from maskmill.model.optimize import optimize
from maskmill.pipeline.config import GeneratorConfig
from maskmill.pipeline.generator import MaskGenerator
from maskmill.pipeline.records import ImageMasks, StepTimer
from testing import oracles
from testing.colour_sam import ColourSam

Pixels = NDArray[np.uint8]


def _large() -> Pixels:
    left, _, _ = skimage.data.stereo_motorcycle()
    return np.asarray(Image.fromarray(left).resize((2100, 1417), Image.Resampling.BICUBIC))


PHOTOGRAPHS: dict[str, Callable[[], Pixels]] = {
    "portrait": lambda: skimage.data.astronaut()[:, 120:400],
    "wide": lambda: skimage.data.coffee()[120:320],
    "small": lambda: skimage.data.chelsea()[60:200, 100:300],
    "large": _large,
    "grey": lambda: np.stack([skimage.data.coins()] * 3, axis=-1),
    "nearly_empty": lambda: skimage.data.rocket()[20:220, 20:250],
}

OFFICIAL = GeneratorConfig(points_per_side=8, points_per_batch=16, stability_score_thresh=0.85)
CASES = {
    "official": OFFICIAL,
    "crops": replace(OFFICIAL, crop_n_layers=2, crop_n_points_downscale_factor=2),
    "small_regions": replace(OFFICIAL, min_mask_region_area=100),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("photograph", PHOTOGRAPHS)
def test_masks_are_the_published_ones(photograph, case):
    config = CASES[case]
    if photograph == "large":
        config = replace(config, points_per_side=3, crop_n_layers=min(config.crop_n_layers, 1))
    pixels = PHOTOGRAPHS[photograph]()
    masks = generate(ColourSam(), config, pixels)
    published = oracles.published_generator(oracles.published_colour_sam(), config).generate(pixels)
    assert len(masks) > 5
    # The same logits on both sides: nothing may differ.
    assert list(masks.rle_counts) == [mask["segmentation"]["counts"].encode() for mask in published]
    assert_same(masks, published)


@pytest.fixture(scope="module")
def embedded_sam() -> Network:
    return load_model("mini", None).network


@pytest.mark.parametrize(
    ("photograph", "case"),
    [*((photograph, "official") for photograph in PHOTOGRAPHS), ("small", "crops"), ("portrait", "small_regions")],
)
def test_masks_of_the_embedded_model_are_the_published_ones(embedded_sam, photograph, case):
    # Below the preset's thresholds: what a small model is less sure of is compared as well.
    config = replace(CASES[case], points_per_side=6, pred_iou_thresh=0.3, stability_score_thresh=0.4)
    if photograph == "large":
        config = replace(config, points_per_side=3)
    pixels = PHOTOGRAPHS[photograph]()
    masks = generate(optimize(embedded_sam, "exact", "cpu"), config, pixels)
    published = oracles.published_generator(oracles.published_sam(embedded_sam), config).generate(pixels)
    assert len(masks) > 0
    assert_same(masks, published)


def test_masks_of_the_published_architecture_are_the_published_ones():
    torch.manual_seed(2)  # with seed 0, two predicted IoUs differ by one unit in the last place
    network = Network(
        SamConfig(
            "tiny",
            encoder_width=64,
            encoder_depth=2,
            encoder_heads=4,
            global_attention_blocks=(1,),
            window_size=7,
            image_size=256,
            embed_dim=64,
        )
    )
    for name, weight in network.state_dict().items():
        if "output_hypernetworks_mlps" in name and "layers.2" in name:
            weight.mul_(100)  # random weights give logits near 0
        if "iou_prediction_head.layers.2" in name:
            weight.mul_(10)  # and predicted IoUs so close to each other that rounding would change their order
    # Every mask: random ones lie all over the image, so that NMS would leave one.
    config = replace(OFFICIAL, pred_iou_thresh=0, stability_score_thresh=0, box_nms_thresh=1)
    pixels = PHOTOGRAPHS["portrait"]()
    masks = generate(optimize(network, "exact", "cpu"), config, pixels)
    assert len(masks) == 3 * 64
    assert_same(masks, oracles.published_generator(oracles.published_sam(network), config).generate(pixels))


def generate(network: Network, config: GeneratorConfig, pixels: Pixels) -> ImageMasks:
    generator = MaskGenerator(network, config)
    return generator.generate(generator.prepare(pixels), StepTimer())


def assert_same(
    masks: ImageMasks, published: list[dict], point_tolerance: float = 1e-9, score_tolerance: float = 1e-4
) -> None:
    """Row by row: scores to 1e-4 or two pixels; masks to the pixel or, where float32 rounds differently, IoU 0.999.

    With another `score_tolerance`, masks may differ accordingly more.
    """
    assert len(masks) == len(published)
    for row, expected in enumerate(published):
        assert masks.points[row].tolist() == pytest.approx(expected["point_coords"][0], abs=point_tolerance)
        assert masks.crop_boxes[row].tolist() == expected["crop_box"]
        assert masks.predicted_iou[row] == pytest.approx(expected["predicted_iou"], abs=1e-4)
        # A ratio of pixel counts: one or two pixels of a small mask are more than 1e-4.
        pixels = 2 / expected["area"]
        assert masks.stability_score[row] == pytest.approx(
            expected["stability_score"], abs=max(score_tolerance, pixels)
        )
        if masks.rle_counts[row] == expected["segmentation"]["counts"].encode():
            assert masks.area[row] == expected["area"]
            assert masks.boxes[row].tolist() == expected["bbox"]
        else:
            mask_HW, expected_HW = (
                rle.decode(counts, masks.height, masks.width)
                for counts in (masks.rle_counts[row], expected["segmentation"]["counts"].encode())
            )
            assert (mask_HW & expected_HW).sum() / (mask_HW | expected_HW).sum() > 1 - 10 * score_tolerance
            assert masks.boxes[row].tolist() == pytest.approx(expected["bbox"], abs=1)
