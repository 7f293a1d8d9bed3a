"""The generator with MobileSAM against MobileSAM's own generator and network: the same masks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from maskmill.model.families.mobile_sam.config import VARIANTS
from maskmill.model.network import Network
from maskmill.model.optimize import optimize
from testing import oracles
from testing.networks import random_network
from testing.published_mobile_sam import SamAutomaticMaskGenerator, published_mobile_sam
from tests.pipeline.test_golden import CASES, PHOTOGRAPHS, assert_same, generate


@pytest.fixture(scope="module")
def network() -> Network:
    """`vit_t` at an eighth of its input size, with random weights."""
    network = random_network(replace(VARIANTS[0], image_size=128))
    for name, weight in network.state_dict().items():
        if "output_hypernetworks_mlps" in name and "layers.2" in name:
            weight.mul_(30)  # random weights give logits near 0
    return network


@pytest.mark.parametrize(
    ("photograph", "case"),
    [*((photograph, "official") for photograph in PHOTOGRAPHS), ("small", "crops"), ("small", "small_regions")],
)
def test_masks_are_the_published_ones(network, photograph, case):
    # Random masks lie all over the image: NMS at the usual thresholds would leave one.
    thresholds = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.9, "box_nms_thresh": 1, "crop_nms_thresh": 1}
    config = replace(CASES[case], points_per_side=2 if photograph == "large" else 4, **thresholds)
    pixels = PHOTOGRAPHS[photograph]()
    masks = generate(optimize(network, "exact", "cpu"), config, pixels)
    published = oracles.published_generator(published_mobile_sam(network), config, SamAutomaticMaskGenerator)
    assert len(masks) > 5
    assert_same(masks, published.generate(pixels))
