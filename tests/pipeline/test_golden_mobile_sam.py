"""The generator with MobileSAM against MobileSAM's own generator and network: the same masks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from maskmill.model.families.mobile_sam.config import VARIANTS
from maskmill.model.network import Network
from maskmill.model.optimize import optimize
from maskmill.pipeline.config import GeneratorConfig
from testing import oracles
from testing.networks import random_network
from testing.published_mobile_sam import SamAutomaticMaskGenerator, published_mobile_sam
from tests.pipeline.test_golden import CASES, PHOTOGRAPHS, assert_same, generate


def every_mask(case: str) -> GeneratorConfig:
    """A case with few points and no filters. Random masks lie all over the image: NMS would leave one."""
    return replace(
        CASES[case],
        points_per_side=4,
        pred_iou_thresh=0.0,
        stability_score_thresh=0.0,
        box_nms_thresh=1,
        crop_nms_thresh=1,
    )


def sharpened(network: Network) -> Network:
    """The network with larger logits. Those of random weights are near 0, and all masks unstable."""
    for name, weight in network.state_dict().items():
        if name.startswith(("mask_decoder.output_hypernetworks_mlps.", "mask_decoder.hf_mlp.")) and "layers.2" in name:
            weight.mul_(30)
    return network


@pytest.fixture(scope="module")
def network() -> Network:
    """`vit_t` at an eighth of its input size, with random weights."""
    return sharpened(random_network(replace(VARIANTS[0], image_size=128)))


@pytest.mark.parametrize(
    ("photograph", "case"),
    [*((photograph, "official") for photograph in PHOTOGRAPHS), ("small", "crops"), ("small", "small_regions")],
)
def test_masks_are_the_published_ones(network, photograph, case):
    config = replace(every_mask(case), stability_score_thresh=0.9)
    if photograph == "large":
        config = replace(config, points_per_side=2)
    pixels = PHOTOGRAPHS[photograph]()
    masks = generate(optimize(network, "exact", "cpu"), config, pixels)
    published = oracles.published_generator(published_mobile_sam(network), config, SamAutomaticMaskGenerator)
    assert len(masks) > 5
    assert_same(masks, published.generate(pixels))
