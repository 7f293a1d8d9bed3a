"""The token-side form of the two-way transformer is the same function as the published one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskmill.model.config import NetworkConfig
from maskmill.model.families import VARIANTS
from maskmill.model.inference.token_side import TokenSideTransformer
from maskmill.model.transformer import TwoWayBlock, TwoWayTransformer
from testing.networks import SMALL_CONFIGS, randomise


def both(config: NetworkConfig, dtype: torch.dtype) -> tuple[TwoWayTransformer, TokenSideTransformer]:
    transformer = TwoWayTransformer(config).eval()
    randomise(transformer)
    return transformer, TokenSideTransformer(transformer, dtype)


@torch.no_grad()
def errors(
    config: NetworkConfig, dtype: torch.dtype, prompts: int, tokens: int, cells: int, shared: bool
) -> list[float]:
    """Of tokens and image tokens, relative to the largest value."""
    published, ours = both(config, dtype)
    generator = torch.Generator().manual_seed(prompts * 1000 + tokens * 100 + cells)
    tokens_NTC = torch.randn(prompts, tokens, config.embed_dim, generator=generator)
    image_NLC = torch.randn(1 if shared else prompts, cells, config.embed_dim, generator=generator)
    positions_1LC = torch.randn(1, cells, config.embed_dim, generator=generator)
    expected = published(tokens_NTC, image_NLC, positions_1LC)
    found = ours(tokens_NTC, ours.prepare(image_NLC, positions_1LC))
    assert [x.shape for x in found] == [x.shape for x in expected]
    return [((a.float() - b).abs().max() / b.abs().max()).item() for a, b in zip(found, expected, strict=True)]


class OtherBlock(TwoWayBlock):
    """The same parameters, perhaps another function."""


def test_layer_of_an_unknown_class_is_refused() -> None:
    config = SMALL_CONFIGS["grid7"]
    transformer = TwoWayTransformer(config)
    transformer.layers[1] = OtherBlock(config, add_positions_first=True)
    with pytest.raises(TypeError, match=r"transformer\.layers\.1: OtherBlock has no form for inference"):
        TokenSideTransformer(transformer, torch.float32)


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(list(SMALL_CONFIGS)),
    prompts=st.integers(1, 5),
    tokens=st.integers(1, 9),
    cells=st.integers(1, 50),
    shared=st.booleans(),
)
def test_equals_the_published_formula_for_any_shape(
    name: str, prompts: int, tokens: int, cells: int, shared: bool
) -> None:
    assert max(errors(SMALL_CONFIGS[name], torch.float32, prompts, tokens, cells, shared)) < 5e-6


@pytest.mark.parametrize("variant", ["vit_b", "mini"])
def test_equals_the_published_formula_at_full_size(variant: str) -> None:
    config = VARIANTS[variant]
    assert max(errors(config, torch.float32, 2, 7, config.grid_size**2, shared=True)) < 5e-6


def test_is_close_in_bfloat16_and_keeps_tokens_in_float32() -> None:
    config = VARIANTS["mini"]
    assert 1e-5 < max(errors(config, torch.bfloat16, 3, 7, 100, shared=True)) < 0.05
    _, ours = both(config, torch.bfloat16)
    with torch.no_grad():
        tokens, image = ours(torch.randn(2, 7, 128), ours.prepare(torch.randn(1, 9, 128), torch.randn(1, 9, 128)))
    assert (tokens.dtype, image.dtype) == (torch.float32, torch.bfloat16)
