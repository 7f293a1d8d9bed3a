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
from maskmill.model.config import VARIANTS
from maskmill.model.mask_decoder import DecodedPrompts
from maskmill.model.optimize import optimize
from testing.networks import SMALL_CONFIGS, random_sam

# Windows that divide the grid: the plain network also projects their padding.
CONFIGS = [
    replace(SMALL_CONFIGS["grid7"], window_size=7),
    replace(SMALL_CONFIGS["grid5"], window_size=5),
    replace(VARIANTS["mini"], image_size=128, window_size=4),
]


def counted(run: Callable[[], object]) -> int:
    """Multiply-accumulates."""
    # Of attention, torch counts only this kernel's products on a CPU.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        run()
    return counter.get_total_flops() // 2


def all_masks(decoded: DecodedPrompts) -> Tensor:
    return torch.ones_like(decoded.predicted_iou_NM, dtype=torch.bool)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_image_encoder_is_counted(config):
    sam = random_sam(config).requires_grad_(False)
    image_13SS = torch.zeros(1, 3, config.image_size, config.image_size)
    assert roofline.image_encoder(config) == counted(lambda: sam.encode_images(image_13SS))


@torch.no_grad()
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_mask_decoder_is_counted_as_optimized(config):
    sam = optimize(random_sam(config), "exact", "cpu").requires_grad_(False)
    embedding = sam.encode_images(torch.zeros(1, 3, config.image_size, config.image_size))
    few_N2, many_N2 = (torch.rand(count, 2) * config.image_size for count in (2, 7))
    few, many = sam.decode_points(embedding, few_N2), sam.decode_points(embedding, many_N2)
    # The difference: what is done once for the image does not count.
    prompts = counted(lambda: sam.decode_points(embedding, many_N2)) - counted(
        lambda: sam.decode_points(embedding, few_N2)
    )
    masks = counted(lambda: sam.decode_masks(many, all_masks(many))) - counted(
        lambda: sam.decode_masks(few, all_masks(few))
    )
    # Left out, as they are next to nothing: positional encodings, and query biases times keys.
    assert prompts == pytest.approx(5 * roofline.prompt(config), rel=2e-3)
    assert masks == pytest.approx(5 * roofline.masks_of_prompt(config), rel=2e-3)
