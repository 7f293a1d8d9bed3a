"""The network equals an independent implementation of it, `transformers.SamModel`, on the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from maskmill.model.checkpoint import build_network, read_checkpoint
from maskmill.model.config import NetworkConfig
from maskmill.model.embedding import ImageEmbedding
from maskmill.model.families import VARIANTS
from maskmill.model.families.sam1.config import SamConfig
from maskmill.model.network import Network
from testing.hugging_face import prompt_arguments, random_hugging_face
from testing.networks import SMALL_CONFIGS

TOLERANCE = 1e-4


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def both_networks(config: SamConfig, directory: Path) -> tuple[Network, transformers.SamModel]:
    """The same weights in both, carried over by our own checkpoint loader."""
    theirs = random_hugging_face(config)
    path = directory / "model.safetensors"
    save_file({key: tensor.clone() for key, tensor in theirs.state_dict().items()}, path)
    return build_network(config, read_checkpoint(path)), theirs


def prompts(config: NetworkConfig) -> dict[str, dict[str, Tensor]]:
    """Three prompts of each kind, in the arguments of `decode_prompts`."""
    generator = torch.Generator().manual_seed(1)
    one_point = {
        "points_NP2": torch.rand(3, 1, 2, generator=generator) * config.image_size,
        "labels_NP": torch.ones(3, 1, dtype=torch.int64),
    }
    points = {
        "points_NP2": torch.rand(3, 4, 2, generator=generator) * config.image_size,
        "labels_NP": torch.tensor([[1, 0, 1, 1], [0, 1, 1, -1], [1, 0, 0, 0]]),
    }
    corners = torch.rand(3, 2, 2, generator=generator).sort(dim=1).values * config.image_size
    box = {"boxes_N4": corners.flatten(1)}
    mask = {"masks_N1hw": 4 * torch.randn(3, 1, config.mask_size, config.mask_size, generator=generator)}
    return {
        "one point": one_point,
        "points": points,
        "box": box,
        "mask": mask,
        "points and box": points | box,
        "points and mask": one_point | mask,
        "box and mask": box | mask,
        "points, box and mask": points | box | mask,
    }


def decode_ours(network: Network, embedding: ImageEmbedding, prompt: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Logits (N, M, h, w) and predicted IoUs (N, M) of all masks."""
    decoded = network.decode_prompts(embedding, **prompt)
    everything = torch.ones_like(decoded.predicted_iou_NM, dtype=torch.bool)
    logits = network.decode_masks(decoded, everything)
    return logits.unflatten(0, everything.shape), decoded.predicted_iou_NM


def decode_theirs(
    network: transformers.SamModel, embedding: Tensor, prompt: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """The same from `transformers`, one prompt at a time."""
    logits, ious = [], []
    for i in range(3):
        arguments = prompt_arguments(prompt, i)
        single = network(image_embeddings=embedding, multimask_output=False, **arguments)
        several = network(image_embeddings=embedding, multimask_output=True, **arguments)
        logits.append(torch.cat([single.pred_masks, several.pred_masks], dim=2)[0, 0])
        ious.append(torch.cat([single.iou_scores, several.iou_scores], dim=2)[0, 0])
    return torch.stack(logits), torch.stack(ious)


@torch.no_grad()
def assert_equal_networks(config: SamConfig, kinds: list[str], directory: Path) -> None:
    ours, theirs = both_networks(config, directory)
    image = torch.randn(1, 3, config.image_size, config.image_size, generator=torch.Generator().manual_seed(2))
    embedding = ours.encode_images(image)
    assert relative_error(embedding.grid_BCYX, theirs.get_image_embeddings(image)) < TOLERANCE
    for kind in kinds:
        prompt = prompts(config)[kind]
        logits, ious = decode_ours(ours, embedding, prompt)
        their_logits, their_ious = decode_theirs(theirs, embedding.grid_BCYX, prompt)
        assert relative_error(logits, their_logits) < TOLERANCE, kind
        assert relative_error(ious, their_ious) < TOLERANCE, kind


@pytest.mark.parametrize("name", SMALL_CONFIGS)
def test_small_network_equals_transformers(name: str, tmp_path: Path) -> None:
    config = SMALL_CONFIGS[name]
    assert_equal_networks(config, list(prompts(config)), tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # seconds on a free core, minutes on a busy one
def test_vit_b_equals_transformers(tmp_path: Path) -> None:
    config = VARIANTS["vit_b"]
    assert isinstance(config, SamConfig)
    assert_equal_networks(config, ["points, box and mask"], tmp_path)
