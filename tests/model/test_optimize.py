"""Devices and precisions: float32 unchanged, bf16 close to it, everything else refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from maskmill.model.embedding import ImageEmbedding
from maskmill.model.errors import DeviceError
from maskmill.model.families import FAMILIES
from maskmill.model.families.sam1.config import SamConfig
from maskmill.model.inference.fast_decoder import FastMaskDecoder
from maskmill.model.layers import LayerNorm2d
from maskmill.model.mask_decoder import DecodedPrompts
from maskmill.model.network import Network
from maskmill.model.optimize import (
    OptimizedNetwork,
    gain_of_screen,
    half_precision,
    optimize,
    resolve_device,
)
from maskmill.model.transformer import TwoWayBlock, TwoWayTransformer
from maskmill.model.vitdet import Attention, Block
from testing.networks import SMALL_CONFIGS, random_network

CONFIG = SMALL_CONFIGS["grid5"]
CPU = torch.device("cpu")


@torch.no_grad()
def results(network: Network) -> dict[str, Tensor]:
    """Everything that comes out of a network, for points and for boxes with masks."""
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(1, 3, network.config.image_size, network.config.image_size, generator=generator).to(
        network.device
    )
    points = torch.rand(4, 1, 2, generator=generator).to(network.device) * network.config.image_size
    boxes = torch.cat([points[:, 0] / 2, points[:, 0]], dim=1)
    masks = torch.randn(4, 1, network.config.mask_size, network.config.mask_size, generator=generator).to(
        network.device
    )
    labels = torch.ones(4, 1, dtype=torch.int64, device=network.device)
    embedding = network.encode_images(image)
    found = {"embedding": embedding.grid_BCYX}
    for kind, prompt in {"points": {}, "boxes": {"boxes_N4": boxes, "masks_N1hw": masks}}.items():
        decoded = network.decode_prompts(embedding, points, labels, **prompt)
        found[f"{kind}, predicted IoU"] = decoded.predicted_iou_NM
        everything = torch.ones_like(decoded.predicted_iou_NM, dtype=torch.bool)
        found[f"{kind}, logits"] = network.decode_masks(decoded, everything)
    return found


@pytest.mark.parametrize("config", SMALL_CONFIGS.values(), ids=list(SMALL_CONFIGS))
def test_exact_is_float32_and_equals_the_plain_network(config: SamConfig) -> None:
    network = random_network(config)
    exact = optimize(network, "exact", "cpu")
    assert {tensor.dtype for tensor in exact.state_dict().values()} == {torch.float32}
    found = results(exact)
    for name, tensor in results(network).items():
        assert (found[name] - tensor).abs().max() / tensor.abs().max() < 2e-6, name


def test_fast_is_exact_itself() -> None:
    network = random_network(CONFIG)
    exact, fast = optimize(network, "exact", "cpu"), optimize(network, "fast", "cpu")
    assert exact.screen() is None
    assert fast.screen() is None or half_precision(CPU) is not None
    found = results(fast)
    for name, tensor in results(exact).items():
        assert torch.equal(found[name], tensor), name


class Repeated(Network):
    """Decodes masks several times, and has another network as its screen."""

    def __init__(self, network: Network, repeats: int, screen: Network | None = None) -> None:
        nn.Module.__init__(self)
        self.config, self._network, self._repeats, self._screen = network.config, network, repeats, screen

    def screen(self) -> Network | None:
        return self._screen

    def decode_points(self, embedding: ImageEmbedding, points_N2: Tensor) -> DecodedPrompts:
        return self._network.decode_points(embedding, points_N2)

    def decode_masks(self, decoded: DecodedPrompts, keep_NM: Tensor) -> Tensor:
        return [self._network.decode_masks(decoded, keep_NM) for _ in range(self._repeats)][-1]


@pytest.mark.parametrize("family", FAMILIES)
def test_gain_of_a_screen_is_measured(family: str) -> None:
    network = OptimizedNetwork(random_network(FAMILIES[family].variants[0]), torch.float32)
    threads = torch.get_num_threads()
    assert gain_of_screen(Repeated(network, 1, screen=Repeated(network, 20))) < 1
    assert gain_of_screen(Repeated(network, 20, screen=network)) > 2
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("gain", "screens", "half_decoder"), [(0.9, False, False), (1.5, False, True), (3.0, True, True)]
)
def test_half_precision_is_used_where_it_is_faster(
    gain: float, screens: bool, half_decoder: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maskmill.model.optimize.gain_of_screen", lambda _: gain)
    monkeypatch.setattr("maskmill.model.optimize.half_precision", lambda _: torch.bfloat16)
    network = random_network(CONFIG)
    assert (optimize(network, "fast", "cpu").screen_dtype is not None) == screens
    half = optimize(network, "half", "cpu")
    assert (half.encoder_dtype, half.screen_dtype) == (torch.bfloat16, None)
    assert (half.decoder_dtype == torch.bfloat16) == half_decoder


def test_screen_is_close_to_float32_and_comes_out_as_float32() -> None:
    network = random_network(CONFIG)
    exact = results(network)
    screen = OptimizedNetwork(network, torch.float32, screen_dtype=torch.bfloat16).screen()
    assert screen is not None
    for name, tensor in results(screen).items():
        assert tensor.dtype == torch.float32
        error = (exact[name] - tensor).abs().max() / tensor.abs().max()
        if name == "embedding":
            assert error < 2e-6
        else:  # It must differ: otherwise nothing ran in bf16.
            assert 1e-5 < error < 0.05, name


def test_half_computes_encoder_and_decoder_in_bf16_and_screens_nothing() -> None:
    network = random_network(CONFIG)
    exact = results(network)
    half = optimize(network, "half", "cpu")
    assert half.screen() is None
    for name, tensor in results(half).items():
        assert tensor.dtype == torch.float32
        error = (exact[name] - tensor).abs().max() / tensor.abs().max()
        assert (error < 2e-6) if half_precision(CPU) is None else (1e-5 < error < 0.1), name


def test_float16_as_gpus_take_it_is_closer_than_bfloat16(gpu: str) -> None:
    exact = {name: x.cpu() for name, x in results(random_network(CONFIG)).items()}

    def errors(dtype: torch.dtype) -> dict[str, float]:
        screen = OptimizedNetwork(random_network(CONFIG).to(gpu), dtype, screen_dtype=dtype).screen()
        assert screen is not None
        found = {name: x.cpu() for name, x in results(screen).items()}
        assert {tensor.dtype for tensor in found.values()} == {torch.float32}
        return {name: float((found[name] - x).abs().max() / x.abs().max()) for name, x in exact.items()}

    coarse = errors(torch.bfloat16)
    for name, error in errors(torch.float16).items():
        assert 1e-6 < error < 0.5 * coarse[name], name


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("image_encoder.blocks.1", Block),
        ("image_encoder.blocks.1.attn", Attention),
        ("image_encoder.neck.1", LayerNorm2d),
        ("mask_decoder.transformer", TwoWayTransformer),
        ("mask_decoder.transformer.layers.0", TwoWayBlock),
    ],
)
def test_part_of_an_unknown_class_is_refused(name: str, kind: type[nn.Module]) -> None:
    """Otherwise the network would be built again without it."""
    network = random_network(CONFIG)
    part = network.get_submodule(name)
    part.__class__ = type("Other", (kind,), {})
    with pytest.raises(TypeError, match=f"{name}: Other has no form for inference; only {kind.__name__} has one"):
        optimize(network, "exact", "cpu")
    if name.startswith("mask_decoder."):
        with pytest.raises(TypeError, match="Other has no form"):
            FastMaskDecoder(CONFIG, network.mask_decoder, torch.float32)


def test_screen_shares_all_weights_but_the_decoder_s_copies() -> None:
    fast = OptimizedNetwork(random_network(CONFIG), torch.float32, screen_dtype=torch.bfloat16)
    screen = fast.screen()
    assert screen is not None
    assert fast.screen() is not screen
    own = dict(fast.named_parameters())
    for name, parameter in screen.named_parameters():
        assert parameter.data_ptr() == own[name].data_ptr(), name


def test_encoder_in_half_precision_leaves_the_original_and_the_delicate_weights_in_float32() -> None:
    network = random_network(CONFIG)
    half = OptimizedNetwork(network, torch.bfloat16)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    dtypes = {key: tensor.dtype for key, tensor in half.state_dict().items()}
    assert dtypes["image_encoder.blocks.0.mlp.lin1.weight"] == torch.bfloat16
    assert dtypes["image_encoder.blocks.0.norm1.weight"] == torch.float32
    assert dtypes["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"] == torch.float32
    found, expected = results(half)["embedding"], results(network)["embedding"]
    assert found.dtype == torch.float32
    assert 1e-5 < (found - expected).abs().max() / expected.abs().max() < 0.05


def test_gpu_equals_cpu(gpu: str) -> None:
    on_cpu = results(random_network(CONFIG))
    for precision, tolerance in (("exact", 1e-4), ("fast", 0.05), ("half", 0.05)):
        on_gpu = results(optimize(random_network(CONFIG), precision, gpu))
        for name, tensor in on_cpu.items():
            assert (on_gpu[name].cpu() - tensor).abs().max() / tensor.abs().max() < tolerance, name


def test_resolve_device_knows_auto_and_cpu() -> None:
    assert resolve_device("cpu") == CPU
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["gpu", "mps", "meta", "cuda:x", ""])
def test_resolve_device_refuses_other_names(name: str) -> None:
    with pytest.raises(DeviceError, match=f"there is no device '{name}'; choose auto"):
        resolve_device(name)


def test_resolve_device_refuses_a_gpu_that_is_not_there() -> None:
    with pytest.raises(DeviceError, match=r"there is no cuda:99 on this machine \(\d+ GPUs\)"):
        resolve_device("cuda:99")


def test_optimize_refuses_other_precisions() -> None:
    with pytest.raises(DeviceError, match="there is no precision 'fp8'; choose exact, fast or half"):
        optimize(random_network(CONFIG), "fp8", "cpu")
