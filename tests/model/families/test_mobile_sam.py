"""MobileSAM equals the network and the generator that its authors published, with the same weights."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskmill.model.families.mobile_sam.config import VARIANTS, MobileSamConfig, TinyVitStage
from maskmill.model.families.mobile_sam.encoder import TinyVit, WindowBlock
from maskmill.model.families.mobile_sam.fast_encoder import speed_up
from maskmill.model.network import Network
from maskmill.model.optimize import optimize
from testing.networks import random_network, randomise
from testing.published_mobile_sam import published_mobile_sam, sam_model_registry
from tests.model.test_against_oracles import TOLERANCE, decode_ours, prompts, relative_error

VIT_T = VARIANTS[0]
# The published encoder keeps the grid before a stage of 320 or 448 channels.
SMALL_CONFIGS = {
    # Grids of 20, 10 and 5 cells, which no window divides.
    "grid5": replace(
        VIT_T,
        name="grid5",
        image_size=80,
        stages=(
            TinyVitStage(24, 1),
            TinyVitStage(32, 2, heads=4, window_size=3),
            TinyVitStage(40, 1, heads=5, window_size=4),
            TinyVitStage(320, 2, heads=10, window_size=6),
        ),
    ),
    # Windows as large as the grid.
    "grid7": replace(
        VIT_T,
        name="grid7",
        image_size=112,
        decoder_mlp_dim=64,
        multimask_outputs=4,
        stages=(
            TinyVitStage(16, 2),
            TinyVitStage(48, 1, heads=3, window_size=7),
            TinyVitStage(60, 3, heads=4, window_size=7),
            TinyVitStage(448, 1, heads=14, window_size=7),
        ),
    ),
}


@torch.no_grad()
def assert_equals_published(config: MobileSamConfig, kinds: list[str]) -> None:
    ours = random_network(config)
    theirs = published_mobile_sam(ours)
    image = torch.randn(1, 3, config.image_size, config.image_size, generator=torch.Generator().manual_seed(2))
    embedding = ours.encode_images(image)
    fast = optimize(copy.deepcopy(ours), "exact", "cpu")
    fast_embedding = fast.encode_images(image)
    expected = theirs.image_encoder(image)
    assert relative_error(embedding.grid_BCYX, expected) < TOLERANCE
    assert relative_error(fast_embedding.grid_BCYX, expected) < TOLERANCE
    for kind in kinds:
        prompt = prompts(config)[kind]
        their_logits, their_ious = decode_theirs(theirs, expected, prompt)
        for network, encoded in ((ours, embedding), (fast, fast_embedding)):
            logits, ious = decode_ours(network, encoded, prompt)
            assert relative_error(logits, their_logits) < TOLERANCE, kind
            assert relative_error(ious, their_ious) < TOLERANCE, kind


def decode_theirs(oracle: Any, embedding: Tensor, prompt: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Logits (N, M, h, w) and predicted IoUs (N, M) of all masks."""
    points = (prompt["points_NP2"], prompt["labels_NP"]) if "points_NP2" in prompt else None
    sparse, dense = oracle.prompt_encoder(points, prompt.get("boxes_N4"), prompt.get("masks_N1hw"))
    positions = oracle.prompt_encoder.get_dense_pe()
    outputs = [oracle.mask_decoder(embedding, positions, sparse, dense, several) for several in (False, True)]
    logits, ious = (torch.cat(parts, dim=1) for parts in zip(*outputs, strict=True))
    return logits, ious


@pytest.mark.parametrize("name", SMALL_CONFIGS)
def test_small_network_equals_the_published_one(name: str) -> None:
    config = SMALL_CONFIGS[name]
    assert_equals_published(config, list(prompts(config)))


@pytest.mark.slow
@pytest.mark.timeout(1800)  # seconds on a free core, minutes on a busy one
def test_vit_t_equals_the_published_one() -> None:
    assert_equals_published(VIT_T, ["points, box and mask"])


def test_parameters_are_those_of_the_published_network_without_its_classifier() -> None:
    published = sam_model_registry["vit_t"]()
    expected = {
        name: weight.shape
        for name, weight in published.state_dict().items()
        if not name.startswith(("image_encoder.head.", "image_encoder.norm_head."))
    }
    with torch.device("meta"):
        ours = Network(VIT_T)
    assert {name: weight.shape for name, weight in ours.state_dict().items()} == expected
    assert sum(weight.numel() for weight in published.parameters()) == 10_130_092
    assert sum(weight.numel() for weight in ours.parameters()) == 9_808_452


@pytest.mark.parametrize("name", SMALL_CONFIGS)
@torch.inference_mode()
def test_fast_encoder_is_close_to_the_formula_when_in_bfloat16(name: str) -> None:
    encoder = TinyVit(SMALL_CONFIGS[name]).eval()
    randomise(encoder)
    fast = copy.deepcopy(encoder)
    speed_up(fast, torch.bfloat16)
    images = torch.randn(2, 3, encoder.img_size, encoder.img_size, generator=torch.Generator().manual_seed(3))
    with torch.autocast("cpu", torch.bfloat16):
        found = fast(images).grid_BCYX
    assert relative_error(found.float(), encoder(images).grid_BCYX) < 0.05


def test_block_of_an_unknown_class_is_refused() -> None:
    class Scaled(WindowBlock):
        def forward(self, x_BCYX: Tensor) -> Tensor:
            return 2 * super().forward(x_BCYX)

    encoder = TinyVit(SMALL_CONFIGS["grid5"])
    blocks = encoder.layers.get_submodule("2.blocks")
    assert isinstance(blocks, nn.ModuleList)
    blocks[0] = Scaled(SMALL_CONFIGS["grid5"].stages[2])
    with pytest.raises(TypeError, match=r"layers\.2\.blocks\.0: Scaled has no form for inference"):
        speed_up(encoder.eval(), torch.float32)
