"""The factored form of the two-way transformer is the same function as the published one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskmill.model.config import NetworkConfig
from maskmill.model.families import VARIANTS
from maskmill.model.inference.low_rank import LowRankTransformer
from maskmill.model.inference.token_side import TokenSideTransformer
from maskmill.model.transformer import TwoWayTransformer
from testing.networks import SMALL_CONFIGS, randomise


@torch.no_grad()
def error(config: NetworkConfig, prompts: int, tokens: int, cells: int, value_scale: float = 1) -> float:
    """The largest error of tokens and image tokens, relative to the largest value."""
    transformer = TwoWayTransformer(config).eval()
    randomise(transformer)
    for block in transformer.layers:
        block.get_parameter("cross_attn_image_to_token.out_proj.weight").mul_(value_scale)
    generator = torch.Generator().manual_seed(prompts * 1000 + tokens * 100 + cells)
    tokens_NTC = torch.randn(prompts, tokens, config.embed_dim, generator=generator)
    image_1LC = torch.randn(1, cells, config.embed_dim, generator=generator)
    positions_1LC = torch.randn(1, cells, config.embed_dim, generator=generator)
    expected = transformer(tokens_NTC, image_1LC, positions_1LC)
    ours, identity_CC = (
        LowRankTransformer(TokenSideTransformer(transformer, torch.float32)),
        torch.eye(config.embed_dim),
    )
    found_NTC, factored = ours(tokens_NTC, ours.prepare(image_1LC, positions_1LC, identity_CC))
    # The identity as linear function gives the image tokens themselves.
    image_NLC = torch.stack([factored.project(n, identity_CC).mT for n in range(prompts)])
    pairs = zip((found_NTC, image_NLC), expected, strict=True)
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(list(SMALL_CONFIGS)),
    prompts=st.integers(1, 5),
    tokens=st.integers(1, 9),
    cells=st.integers(1, 50),
)
def test_equals_the_published_formula_for_any_shape(name: str, prompts: int, tokens: int, cells: int) -> None:
    assert error(SMALL_CONFIGS[name], prompts, tokens, cells) < 5e-6


@pytest.mark.parametrize("variant", ["vit_b", "mini", "hiera_t"])
def test_equals_the_published_formula_at_full_size(variant: str) -> None:
    config = VARIANTS[variant]
    assert error(config, 2, 8, config.grid_size**2) < 5e-6


@pytest.mark.parametrize("value_scale", [0.01, 10, 100])
def test_is_accurate_when_updates_are_much_smaller_or_larger_than_the_image_tokens(value_scale: float) -> None:
    # The variance is a sum of terms that may cancel.
    assert error(VARIANTS["vit_b"], 2, 7, 300, value_scale) < 2e-5
