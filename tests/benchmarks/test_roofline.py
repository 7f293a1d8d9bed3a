"""The counted work equals what torch counts while the plain network runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import roofline
from maskmill.model.families import VARIANTS
from maskmill.model.mask_decoder import DecodedPrompts
from maskmill.model.optimize import optimize
from testing.networks import SMALL_CONFIGS, random_network

CONFIGS = [
    replace(SMALL_CONFIGS["grid7"], window_size=7),
    replace(SMALL_CONFIGS["grid5"], window_size=5),
    replace(VARIANTS["mini"], image_size=128, window_size=4),
]


def counted(run: Callable[[], object]) -> int:
    """Multiply-accumulates."""

    def flops_of_linear(x_shape: torch.Size, weight_shape: torch.Size, *others: object, **result: object) -> int:
        return 2 * x_shape.numel() * weight_shape[0]

    # Of attention, torch counts only this kernel's products on a CPU; of the operators of oneDNN, none.
    linear = {torch.ops.mkldnn._linear_pointwise: flops_of_linear}
    with (
        FlopCounterMode(display=False, custom_mapping=linear) as counter,
        sdpa_kernel(SDPBackend.MATH),
        torch.no_grad(),
    ):
        run()
    return counter.get_total_flops() // 2


def all_masks(decoded: DecodedPrompts) -> Tensor:
    return torch.ones_like(decoded.predicted_iou_NM, dtype=torch.bool)


def test_image_encoder_has_the_published_work():
    # 486 G with padded windows; the paper of SAM counts 2 to 3 T for ViT-H.
    assert roofline.image_encoder(VARIANTS["vit_b"]) == pytest.approx(486e9, rel=1e-3)
    assert 2e12 < roofline.image_encoder(VARIANTS["vit_h"]) < 3e12


@torch.no_grad()
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_mask_decoder_is_counted_as_optimized(config):
    network = optimize(random_network(config), "exact", "cpu").requires_grad_(False)
    embedding = network.encode_images(torch.zeros(1, 3, config.image_size, config.image_size))
    few_N2, many_N2 = (torch.rand(count, 2) * config.image_size for count in (2, 7))
    few, many = network.decode_points(embedding, few_N2), network.decode_points(embedding, many_N2)
    # The difference: what is done once for the image does not count.
    prompts = counted(lambda: network.decode_points(embedding, many_N2)) - counted(
        lambda: network.decode_points(embedding, few_N2)
    )
    masks = counted(lambda: network.decode_masks(many, all_masks(many))) - counted(
        lambda: network.decode_masks(few, all_masks(few))
    )
    # Left out, as they are next to nothing: positional encodings, and query biases times keys.
    assert prompts == pytest.approx(5 * roofline.prompt(config), rel=2e-3)
    # torch does not count compiled kernels: the second step of the upscaling and the products with the mask weights.
    second_step = 4 * config.grid_size**2 * (config.embed_dim // 4) * (config.embed_dim // 2)
    in_loop = second_step + (config.multimask_outputs + 1) * config.mask_size**2 * config.embed_dim // 8
    assert masks == pytest.approx(5 * (roofline.masks_of_prompt(config) - in_loop), rel=2e-3)
