"""The fast blocks are the same function as the published ones."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from maskmill.model.embedding import ImageEmbedding
from maskmill.model.families import FAMILIES, VARIANTS
from maskmill.model.families.sam1.encoder import ImageEncoder
from maskmill.model.inference.fast_vitdet import _attend_fused, attend_in_blocks, speed_up
from maskmill.model.vitdet import Block, VitDetConfig
from testing.networks import SMALL_CONFIGS, randomise

GRID7 = SMALL_CONFIGS["grid7"]
CONFIGS = SMALL_CONFIGS | {
    "windows_fit": replace(GRID7, window_size=7),
    "one_window_larger_than_the_grid": replace(GRID7, window_size=9),
    # More queries than are taken at once, a multiple of 16 and not.
    "grid24": replace(GRID7, image_size=384),
    "grid25": replace(GRID7, image_size=400),
    "skips": replace(VARIANTS["mini"], image_size=128, encoder_width=64, encoder_depth=2, global_attention_blocks=(1,)),
}


def both(config: VitDetConfig, dtype: torch.dtype, device: str = "cpu") -> tuple[nn.Module, nn.Module]:
    """The reference in float32, and the fast encoder in `dtype`."""
    published = FAMILIES[config.family].build_encoder(config).eval()
    randomise(published)
    ours = copy.deepcopy(published).to(device)
    speed_up(ours, dtype)
    return published, ours


def images(config: VitDetConfig, count: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, 3, config.image_size, config.image_size, generator=generator)


@torch.inference_mode()
def encode(encoder: nn.Module, images_B3SS: Tensor, bfloat16: bool = False) -> ImageEmbedding:
    device = encoder.get_parameter("pos_embed").device
    with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
        return encoder(images_B3SS.to(device)).map(lambda x: x.float().cpu())


def error(found: ImageEmbedding, expected: ImageEmbedding) -> float:
    """The largest, relative to the largest value."""
    pairs = list(zip((found.grid_BCYX, *found.skips), (expected.grid_BCYX, *expected.skips), strict=True))
    assert all(a.shape == b.shape for a, b in pairs)
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_the_published_formula_when_in_float32(name: str) -> None:
    published, ours = both(CONFIGS[name], torch.float32)
    x = images(CONFIGS[name], count=2)
    assert error(encode(ours, x), encode(published, x)) < 1e-5


@pytest.mark.parametrize("name", CONFIGS)
def test_is_as_close_as_autocast_when_in_bfloat16(name: str) -> None:
    published, ours = both(CONFIGS[name], torch.bfloat16)
    x = images(CONFIGS[name])
    exact = encode(published, x)
    ours_error = error(encode(ours, x, bfloat16=True), exact)
    # It must differ: otherwise nothing ran in bf16.
    assert 1e-4 < ours_error < 0.05
    assert ours_error < 1.3 * error(encode(published, x, bfloat16=True), exact)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["vit_b", "mini"])
def test_equals_the_published_formula_at_full_size(variant: str) -> None:
    # One block of each kind. Big grids have the largest sums and the most queries.
    config = VARIANTS[variant]
    assert isinstance(config, VitDetConfig)
    config = replace(config, encoder_depth=2, global_attention_blocks=(1,))
    published, ours = both(config, torch.float32)
    x = images(config)
    assert error(encode(ours, x), encode(published, x)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["grid7", "grid24", "skips"])
def test_does_not_depend_on_the_other_images_of_the_batch(name: str, dtype: torch.dtype) -> None:
    _, ours = both(CONFIGS[name], dtype)
    x, bfloat16 = images(CONFIGS[name], count=3), dtype == torch.bfloat16
    together = encode(ours, x, bfloat16)
    for i in range(3):
        one = slice(i, i + 1)
        assert error(encode(ours, x[one], bfloat16), together[one]) < (0.02 if bfloat16 else 2e-6)


def test_keeps_the_names_of_all_parameters() -> None:
    published, ours = both(GRID7, torch.bfloat16)
    dtypes = {name: tensor.dtype for name, tensor in ours.state_dict().items()}
    assert dtypes.keys() == published.state_dict().keys()
    assert dtypes["blocks.0.attn.qkv.weight"] == torch.bfloat16
    assert dtypes["blocks.0.norm1.weight"] == torch.float32


class OtherBlock(Block):
    """The same parameters, perhaps another function."""


def test_block_of_an_unknown_class_is_refused() -> None:
    encoder = ImageEncoder(GRID7)
    for other in (OtherBlock(GRID7, 0), torch.nn.Identity()):
        encoder.blocks[1] = other
        with pytest.raises(TypeError, match=rf"image_encoder\.blocks\.1: {type(other).__name__} has no form"):
            speed_up(encoder, torch.float32)


@pytest.mark.parametrize("cells", [9, 1200])
def test_fused_kernel_equals_blocks(cells: int) -> None:
    generator = torch.Generator().manual_seed(cells)
    q, k, v = (torch.randn(2, 3, cells, length, generator=generator) for length in (12, 12, 8))
    torch.testing.assert_close(_attend_fused(q, k, v), attend_in_blocks(q, k, v))


@pytest.mark.parametrize("name", CONFIGS)
def test_gpu_equals_the_published_formula_on_the_cpu(name: str, gpu: str) -> None:
    x = images(CONFIGS[name], count=2)
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.05)):
        published, ours = both(CONFIGS[name], dtype, gpu)
        assert error(encode(ours, x, bfloat16=dtype == torch.bfloat16), encode(published, x)) < tolerance
