"""The mask decoder arranged for inference is the same function as the published one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maskmill.model.embedding import ImageEmbedding
from maskmill.model.families.sam1.config import SamConfig
from maskmill.model.inference import cpu_kernels, upscaling_kernels
from maskmill.model.inference.fast_decoder import FastMaskDecoder
from maskmill.model.inference.upscaling import CellsLast, ChannelsLast, ChosenMasks
from maskmill.model.mask_decoder import DecodedPrompts
from maskmill.model.network import Network
from testing.networks import SMALL_CONFIGS, SMALL_SAM2_CONFIGS, random_network

CONFIGS = {
    **SMALL_CONFIGS,
    **{f"{name}, other skips": replace(c, high_resolution_skips=True) for name, c in SMALL_CONFIGS.items()},
    "sam2": SMALL_SAM2_CONFIGS["grid6"],
}


def embeddings(config: SamConfig, images: int, seed: int = 0) -> ImageEmbedding:
    generator = torch.Generator().manual_seed(seed)
    side, channels = config.grid_size, config.embed_dim
    skips = ()
    if config.high_resolution_skips:
        skips = tuple(
            torch.randn(images, channels >> (i + 1), side << i, side << i, generator=generator) for i in (1, 2)
        )
    return ImageEmbedding(torch.randn(images, channels, side, side, generator=generator), skips)


def decode(network: Network, embedding: ImageEmbedding, with_mask: bool, keep_NM: Tensor) -> tuple[Tensor, Tensor]:
    """Predicted IoUs and the logits of the chosen masks."""
    generator = torch.Generator().manual_seed(1)
    side = network.config.mask_size
    points = torch.rand(len(keep_NM), 2, 2, generator=generator) * network.config.image_size
    labels = torch.tensor([[1, 0]]).expand(len(keep_NM), 2)
    masks = torch.randn(len(keep_NM), 1, side, side, generator=generator) if with_mask else None
    points, labels, masks = (x if x is None else x.to(network.device) for x in (points, labels, masks))
    decoded = network.decode_prompts(embedding, points, labels, masks_N1hw=masks)
    return decoded.predicted_iou_NM, network.decode_masks(decoded, keep_NM)


def error(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    assert found.dtype == torch.float32
    return ((found - expected).abs().max() / expected.abs().max()).item() if expected.numel() else 0.0


class FactoredDecoder(FastMaskDecoder):
    """Decodes prompts on embeddings of any size in factored form."""

    LEAST_FACTORED_CELLS = 0


@pytest.mark.parametrize("decoder", [FastMaskDecoder, FactoredDecoder])
@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))
@torch.no_grad()
def test_equals_the_published_decoder(
    config: SamConfig, shared: bool, with_mask: bool, decoder: type[FastMaskDecoder]
) -> None:
    compare(config, shared, with_mask, torch.device("cpu"), decoder)


@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))
@torch.no_grad()
def test_equals_the_published_decoder_on_a_gpu(config: SamConfig, shared: bool, with_mask: bool, gpu: str) -> None:
    compare(config, shared, with_mask, torch.device(gpu), FastMaskDecoder)


def compare(
    config: SamConfig, shared: bool, with_mask: bool, device: torch.device, decoder: type[FastMaskDecoder]
) -> None:
    """Asserts that the decoder on a device equals the published one on the CPU."""
    network = random_network(config)
    embedding = embeddings(config, 1 if shared else 3)
    # All masks of a prompt, some, and none.
    keep_NM = torch.stack([torch.arange(config.multimask_outputs + 1) % step == 0 for step in (1, 2, 9)])
    keep_NM[2] = False
    expected = decode(network, embedding, with_mask, keep_NM)
    network.to(device)
    network.mask_decoder = decoder(config, network.mask_decoder, torch.float32)
    embedding = embedding.map(lambda x: x.to(device))
    for found, tensor in zip(decode(network, embedding, with_mask, keep_NM), expected, strict=True):
        assert error(found.cpu(), tensor) < (5e-6 if device.type == "cpu" else 1e-4)
    empty = decode(network, embedding, with_mask, torch.zeros_like(keep_NM))[1]
    assert empty.shape == (0, config.mask_size, config.mask_size)


@pytest.mark.parametrize("decoder", [FastMaskDecoder, FactoredDecoder])
@torch.no_grad()
def test_what_it_keeps_of_an_embedding_is_not_taken_for_another(decoder: type[FastMaskDecoder]) -> None:
    config = CONFIGS["grid5, other skips"]
    network, keep_NM = random_network(config), torch.ones(2, config.multimask_outputs + 1, dtype=torch.bool)
    first, second = embeddings(config, 1, seed=1), embeddings(config, 1, seed=2)
    cases = [(first, False), (second, False), (first, True), (first, False), (second, True), (second, False)]
    expected = [decode(network, embedding, with_mask, keep_NM) for embedding, with_mask in cases]
    network.mask_decoder = decoder(config, network.mask_decoder, torch.float32)
    for (embedding, with_mask), tensors in zip(cases, expected, strict=True):
        for found, tensor in zip(decode(network, embedding, with_mask, keep_NM), tensors, strict=True):
            assert error(found, tensor) < 5e-6


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-6), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize("channels", [4, 16, 50, 256])
def test_kernels_are_torchs_formulas(channels: int, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(channels)
    x, shared = ((3 * torch.randn(images, 48, channels)).to(dtype) for images in (3, 1))
    positions = torch.randn(1, 48, channels).to(dtype)
    weight, bias = torch.randn(2, channels)

    def norm(y: Tensor) -> Tensor:
        return F.layer_norm(y.float(), (channels,), weight, bias, 1e-6)

    for other in (shared, x.flip(0)):
        # One value vector per channel, weighted by the update itself.
        weights, values = x.mT.contiguous(), torch.eye(channels, dtype=dtype).expand(3, -1, -1)
        found, placed = cpu_kernels.update_and_norm(weights, values, other, positions, weight, bias, 1e-6)
        assert error(found.float(), norm(x.float() + other.float())) < tolerance
        assert error(placed.float(), norm(x.float() + other.float()) + positions.float()) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-6), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize("cells", [1, 48, 1024, 1500])
@pytest.mark.parametrize("with_skip", [False, True])
def test_norm_and_gelu_is_torchs_formula(cells: int, dtype: torch.dtype, tolerance: float, with_skip: bool) -> None:
    torch.manual_seed(cells)
    x, skip = (3 * torch.randn(2, 2, 13, cells)).to(dtype)
    constant, weight, bias = torch.randn(3, 13)
    norm = torch.nn.LayerNorm(13, eps=1e-6)
    norm.weight, norm.bias = torch.nn.Parameter(weight), torch.nn.Parameter(bias)
    total = x.float() + constant[:, None]
    total = total + skip.float() if with_skip else total
    expected = F.gelu(norm(total.mT)).mT
    upscaling_kernels.norm_and_gelu(x, constant, skip if with_skip else None, norm)
    assert error(x.float(), expected.detach()) < tolerance


def gelu(x: Tensor) -> Tensor:
    """The GELU of `gelu_and_logits`."""
    found = x.clone()
    without_masks = torch.empty(0, 1), 0, len(x), torch.empty(0, 4, 4 * len(x))
    upscaling_kernels.gelu_and_logits(found[None, None], torch.zeros(1), None, *without_masks)
    return found


def test_gelu_is_right_everywhere() -> None:
    x = torch.cat([torch.linspace(-12, 12, 100_001), torch.tensor([-1e30, 1e30, 0.0, -0.0])])
    found = gelu(x)
    assert (found[:-4] - F.gelu(x[:-4].double()).float()).abs().max() < 2e-6
    assert found[-3:].tolist() == [pytest.approx(1e30), 0, 0]
    assert abs(found[-4] / x[-4]) < 1e-7


def test_bfloat16_is_rounded_as_torch_rounds() -> None:
    x = torch.cat([torch.randn(10_000), torch.tensor([0.0, 1 + 2**-8, 1 + 3 * 2**-8, 3e38])]).to(torch.bfloat16)
    # The halves that torch rounds to even numbers: what comes out must be the nearest bfloat16 of the float32 result.
    assert torch.equal(gelu(x), gelu(x.float()).to(torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_both_layouts_of_the_upscaling_are_the_same_function(dtype: torch.dtype) -> None:
    for config in CONFIGS.values():
        decoder, embedding = random_network(config).mask_decoder, embeddings(config, 3)
        decoded = DecodedPrompts(
            torch.empty(0), torch.empty(0), embedding.grid_BCYX.to(dtype).to(memory_format=torch.channels_last)
        )
        rows_Z, chosen_K2 = torch.tensor([2, 0]), torch.tensor([[0, 1], [0, 2], [1, 0]])
        weights_ZMC = torch.randn(2, 4, config.embed_dim // 8)
        found = []
        layers = decoder.output_upscaling
        for upscaling in (CellsLast(layers, dtype), ChannelsLast(layers, dtype)):
            skips = [upscaling.arrange_skip(skip, steps) for steps, skip in enumerate(embedding.skips, start=1)]
            found.append(upscaling(ChosenMasks(decoded, rows_Z, weights_ZMC, chosen_K2), skips, with_features=True))
        for cells_last, channels_last in zip(*found, strict=True):
            assert error(cells_last.float(), channels_last.float()) < (5e-6 if dtype == torch.float32 else 0.02)
