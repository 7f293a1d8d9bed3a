"""Networks of every family give the same on a GPU as on a CPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from maskmill.model.network import Network
from maskmill.model.optimize import optimize
from testing.networks import random_network
from tests.model.families.test_checkpoints import SMALL


@torch.inference_mode()
def results(network: Network) -> dict[str, Tensor]:
    """The embedding of an image, and the predicted IoUs and logits of three points, on the CPU."""
    generator, side = torch.Generator().manual_seed(1), network.config.image_size
    image = torch.randn(1, 3, side, side, generator=generator).to(network.device)
    points_N2 = (torch.rand(3, 2, generator=generator) * side).to(network.device)
    embedding = network.encode_images(image)
    decoded = network.decode_points(embedding, points_N2)
    logits = network.decode_masks(decoded, torch.ones_like(decoded.predicted_iou_NM, dtype=torch.bool))
    found = {"embedding": embedding.grid_BCYX, "predicted IoU": decoded.predicted_iou_NM, "logits": logits}
    return {name: tensor.cpu() for name, tensor in found.items()}


@pytest.mark.parametrize("family", SMALL)
def test_gpu_equals_cpu(family: str, gpu: str) -> None:
    on_cpu = results(random_network(SMALL[family]))
    for precision, tolerance in (("exact", 1e-4), ("fast", 0.05), ("half", 0.05)):
        on_gpu = results(optimize(random_network(SMALL[family]), precision, gpu))
        for name, tensor in on_cpu.items():
            assert (on_gpu[name] - tensor).abs().max() / tensor.abs().max() < tolerance, name
