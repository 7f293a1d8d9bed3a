"""The generator against the published one of SAM 2, with the same random weights: the same masks of each photograph."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from maskmill.filters import rle
from maskmill.model.checkpoint import build_network, read_checkpoint
from maskmill.model.network import Network
from maskmill.model.optimize import OptimizedNetwork, optimize
from maskmill.pipeline.config import PRESETS
from testing.networks import SMALL_SAM2_CONFIGS, random_network, randomise
from testing.sam2_oracles import published_generator, published_sam2
from tests.pipeline.test_golden import PHOTOGRAPHS, assert_same, generate

NETWORK = SMALL_SAM2_CONFIGS["grid6"]
REDUCTION = 3  # of the photographs: the published generator stores all pixels of all masks
# Thresholds that drop some of the masks of random weights. Most of these fill the image, and NMS would leave one.
SAM2 = replace(
    PRESETS["sam2"],
    points_per_side=4,
    points_per_batch=16,
    pred_iou_thresh=0.45,
    stability_score_thresh=0.5,
    box_nms_thresh=1,
    crop_nms_thresh=1,
)
CROPS = replace(SAM2, crop_n_layers=1, crop_n_points_downscale_factor=2, mask_threshold=6)
CASES = {
    "sam2": SAM2,
    "nms": replace(SAM2, mask_threshold=6, box_nms_thresh=0.9),
    "crops": CROPS,
    "small_regions": replace(SAM2, min_mask_region_area=6),
    "m2m": replace(SAM2, use_m2m=True, pred_iou_thresh=0.3),
    "single_masks": replace(SAM2, multimask_output=False, pred_iou_thresh=0.3),
    "all": replace(CROPS, min_mask_region_area=6, use_m2m=True, pred_iou_thresh=0.3),
}


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Network, Any]:
    """The same weights in our network and in the published one."""
    oracle, path = published_sam2(NETWORK), tmp_path_factory.mktemp("sam2") / "sam2.pt"
    randomise(oracle)
    for mlp in oracle.sam_mask_decoder.output_hypernetworks_mlps:
        mlp.get_parameter("layers.2.weight").data.mul_(6)  # random weights give logits near 0
    torch.save({"model": oracle.state_dict()}, path)
    return optimize(build_network(NETWORK, read_checkpoint(path)), "exact", "cpu"), oracle


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("photograph", PHOTOGRAPHS)
def test_masks_are_the_published_ones(photograph: str, case: str, networks: tuple[Network, Any]) -> None:
    ours, oracle = networks
    config = CASES[case]
    if photograph == "large":
        config = replace(config, points_per_side=2)
    pixels = np.ascontiguousarray(PHOTOGRAPHS[photograph]()[::REDUCTION, ::REDUCTION])
    masks = generate(ours, config, pixels)
    published = published_generator(oracle, config).generate(pixels)
    assert len(masks) > 0
    # Points are published as float32. A pixel whose logit is at a threshold is a thousandth of a mask.
    assert_same(masks, published, point_tolerance=1e-4, score_tolerance=1e-3)


@pytest.mark.parametrize("case", ["small_regions", "m2m", "single_masks"])
def test_low_precision_changes_no_mask_when_it_cannot_preselect_candidates(
    case: str, networks: tuple[Network, Any]
) -> None:
    pixels = np.ascontiguousarray(PHOTOGRAPHS["portrait"]()[::REDUCTION, ::REDUCTION])
    network = random_network(NETWORK)
    network.load_state_dict(networks[0].state_dict())
    fast = OptimizedNetwork(network, torch.float32, screen_dtype=torch.bfloat16)
    assert generate(fast, CASES[case], pixels).rle_counts == generate(networks[0], CASES[case], pixels).rle_counts


@pytest.mark.parametrize("case", ["sam2", "all"])
def test_masks_are_those_of_a_cpu_when_on_a_gpu(case: str, networks: tuple[Network, Any], gpu: str) -> None:
    pixels = np.ascontiguousarray(PHOTOGRAPHS["portrait"]()[::REDUCTION, ::REDUCTION])
    expected = generate(networks[0], CASES[case], pixels)
    network = random_network(NETWORK)
    network.load_state_dict(networks[0].state_dict())
    masks = generate(OptimizedNetwork(network.to(gpu), torch.float32), CASES[case], pixels)
    assert len(masks) == len(expected)
    for found, counts in zip(masks.rle_counts, expected.rle_counts, strict=True):
        found_HW, expected_HW = (rle.decode(each, *pixels.shape[:2]) for each in (found, counts))
        assert (found_HW & expected_HW).sum() / (found_HW | expected_HW).sum() > 0.99
