"""The counted work equals what torch counts while the plain network runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import roofline
from model.config import VARIANTS, SamConfig
from model.sam import Sam
from model.token_side import TokenSideTransformer
from model.transformer import TwoWayTransformer
from tests.model.networks import SMALL_CONFIGS, random_sam

# Windows that divide the grid: the plain network also projects their padding.
CONFIGS = [
    replace(SMALL_CONFIGS["grid7"], window_size=7),
    replace(SMALL_CONFIGS["grid5"], window_size=5),
    replace(VARIANTS["mini"], image_size=128, window_size=4),
]


def counted(run: Callable[[], object]) -> int:
    """Multiply-accumulates."""
    # Of attention, torch counts only this kernel's products on a CPU.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return counter.get_total_flops() // 2


def token_side_sam(config: SamConfig) -> Sam:
    sam = random_sam(config).requires_grad_(False)
    transformer = sam.mask_decoder.transformer
    assert isinstance(transformer, TwoWayTransformer)
    sam.mask_decoder.transformer = TokenSideTransformer(transformer, torch.float32)
    return sam


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_image_encoder_is_counted(config):
    sam = random_sam(config).requires_grad_(False)
    image_13SS = torch.zeros(1, 3, config.image_size, config.image_size)
    assert roofline.image_encoder(config) == counted(lambda: sam.encode_images(image_13SS))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_mask_decoder_is_counted_in_its_token_side_form(config):
    sam = token_side_sam(config)
    embedding = sam.encode_images(torch.zeros(1, 3, config.image_size, config.image_size))
    points_N2 = torch.rand(5, 2) * config.image_size
    decoded = sam.decode_points(embedding, points_N2)
    keep_NM = torch.ones_like(decoded.predicted_iou_NM, dtype=torch.bool)
    # Left out, as they are next to nothing: positions, and query biases times keys.
    positions = config.embed_dim * (5 + config.grid_size**2)
    tokens, inner = config.multimask_outputs + 4, config.embed_dim // config.decoder_attention_downsample
    biases = 5 * config.decoder_depth * tokens * inner
    expected = 5 * roofline.prompt(config) + positions + biases
    assert expected == counted(lambda: sam.decode_points(embedding, points_N2))
    assert 5 * roofline.masks_of_prompt(config) == counted(lambda: sam.decode_masks(decoded, keep_NM))
