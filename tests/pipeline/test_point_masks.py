"""Masks at points: early rejection changes no mask, and refinement starts from the right mask of each point."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from maskmill.model.network import Network
from maskmill.pipeline.config import GeneratorConfig
from maskmill.pipeline.point_masks import predict_masks
from testing.networks import SMALL_CONFIGS, SMALL_SAM2_CONFIGS, random_network

NETWORKS = {
    "sam1": replace(SMALL_CONFIGS["grid7"], sigmoid_iou=True),  # a threshold of 0 would keep negative scores
    "sam2": SMALL_SAM2_CONFIGS["grid6"],
    "best_candidate_only": replace(SMALL_SAM2_CONFIGS["grid6"], best_candidate_only=True),
}
CONFIGS = {
    "three_masks": GeneratorConfig(),
    "one_mask": GeneratorConfig(multimask_output=False),
    "m2m": GeneratorConfig(use_m2m=True),
    "m2m_of_one_mask": GeneratorConfig(use_m2m=True, multimask_output=False),
}


def random_points(network: Network, count: int) -> torch.Tensor:
    return torch.rand(count, 2, generator=torch.Generator().manual_seed(4)) * network.config.image_size


@pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))
@pytest.mark.parametrize("name", NETWORKS)
@torch.inference_mode()
def test_threshold_removes_masks_and_changes_no_other(name: str, config: GeneratorConfig) -> None:
    network = random_network(NETWORKS[name])
    side = network.config.image_size
    embedding = network.encode_images(torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(5)))
    points_N2 = random_points(network, 5)
    everything = predict_masks(network, config, embedding, points_N2, iou_threshold=0)
    iou_K = everything.predicted_iou_NR[everything.keep_NR]
    assert len(iou_K) == len(everything.logits_Khw)
    threshold = iou_K.median().item()
    some = predict_masks(network, config, embedding, points_N2, threshold)
    assert threshold > 0
    assert 0 < some.keep_NR.sum() < everything.keep_NR.sum()
    assert torch.equal(some.keep_NR, everything.keep_NR & (everything.predicted_iou_NR > threshold))
    torch.testing.assert_close(some.logits_Khw, everything.logits_Khw[iou_K > threshold])


@torch.inference_mode()
def test_refinement_starts_from_the_best_mask_when_only_that_is_a_candidate() -> None:
    network = random_network(NETWORKS["best_candidate_only"])
    side, limit = network.config.image_size, network.config.logit_limit
    embedding = network.encode_images(torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(5)))
    points_N2 = random_points(network, 3)
    decoded = network.decode_points(embedding, points_N2)
    first_Nhw = network.decode_masks(decoded, network.candidates(decoded.predicted_iou_NM))
    refined = network.decode_prompts(
        embedding, points_N2[:, None], torch.ones(3, 1), masks_N1hw=first_Nhw[:, None].clamp(-limit, limit)
    )
    logits_Nhw, iou_N = network.decode_single_masks(refined, torch.ones(3, dtype=torch.bool))
    found = predict_masks(network, CONFIGS["m2m"], embedding, points_N2, iou_threshold=0)
    assert found.keep_NR.sum(dim=1).tolist() == [1, 1, 1]
    torch.testing.assert_close(found.predicted_iou_NR[found.keep_NR], iou_N)
    torch.testing.assert_close(found.logits_Khw, logits_Nhw)
