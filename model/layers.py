"""Small layers used by several parts of the network.

Shapes: B images, C channels, Y X grid in cells, D features, N products, I O outer axes of a product, K its inner axis.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROWS_PER_BLOCK = 1024
# Multiply-accumulates of a product below which a call of oneDNN costs more than it saves.
LEAST_ONEDNN_WORK = 2**19


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of a (B, C, Y, X) tensor."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x_BCYX: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride] (the name)
        return super().forward(x_BCYX.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class MLPBlock(nn.Module):
    """The two-layer MLP of a transformer block."""

    def __init__(self, dim: int, hidden_dim: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.lin1 = nn.Linear(dim, hidden_dim)
        self.lin2 = nn.Linear(hidden_dim, dim)
        self.activation = activation

    def forward(self, x_D: Tensor) -> Tensor:
        return self.lin2(self.activation(self.lin1(x_D)))


class MLP(nn.Module):
    """The multi-layer perceptron of an output head: `depth` linear layers with activations between them."""

    def __init__(
        self, dim: int, hidden_dim: int, output_dim: int, depth: int, activation: Callable[[Tensor], Tensor] = F.relu
    ) -> None:
        super().__init__()
        self.activation = activation
        dims = [dim] + [hidden_dim] * (depth - 1) + [output_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(dims))

    def forward(self, x_D: Tensor) -> Tensor:
        *hidden, last = self.layers
        for layer in hidden:
            x_D = self.activation(layer(x_D))
        return last(x_D)


def fast_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear` for inference, faster for float32 on a CPU."""
    if not _onednn_is_faster(x):
        return F.linear(x, weight, bias)
    # PyTorch computes float32 matrix products with MKL, which takes twice as long as oneDNN on AMD processors. This
    # operator, which `torch.compile` uses, always calls oneDNN. Weights with gaps in memory would take it 1000 times as
    # long.
    if not weight.mT.is_contiguous():
        weight = weight.contiguous()
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def fast_bmm(x_NIK: Tensor, y_NKO: Tensor) -> Tensor:
    """Matrix products (N, I, O) for inference, faster for large products of float32 on a CPU."""
    work = x_NIK.shape[1] * x_NIK.shape[2] * y_NKO.shape[2]
    if not _onednn_is_faster(x_NIK) or len(x_NIK) == 0 or work < LEAST_ONEDNN_WORK:
        return x_NIK @ y_NKO
    return torch.stack([fast_linear(x_IK, y_KO.mT) for x_IK, y_KO in zip(x_NIK, y_NKO, strict=True)])


def fast_mlp(mlp: MLPBlock, x: Tensor) -> Tensor:
    """`mlp` at inference. On a CPU it runs in blocks of rows, so that their hidden features fit in the cache."""
    parts = x.flatten(0, -2).split(ROWS_PER_BLOCK if x.device.type == "cpu" else x.numel())
    hidden = (mlp.activation(fast_linear(part, mlp.lin1.weight, mlp.lin1.bias)) for part in parts)
    return torch.cat([fast_linear(part, mlp.lin2.weight, mlp.lin2.bias) for part in hidden]).view_as(x)


def convert_products(module: nn.Module, dtype: torch.dtype) -> None:
    """Converts the weights of matrix products and convolutions once: autocast would convert them in every call."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            part.to(dtype)


def is_float32_on_cpu(x: Tensor) -> bool:
    """Whether `x` is float32 on a CPU, where matrix products are slow compared with element-wise operations."""
    return x.device.type == "cpu" and x.dtype == torch.float32


def _onednn_is_faster(x: Tensor) -> bool:
    return is_float32_on_cpu(x) and torch.backends.mkldnn.is_available()


def require_class(name: str, module: nn.Module, known: type[nn.Module]) -> None:
    """Raises TypeError unless a module is exactly of the class `known`, for which an inference form exists.

    A subclass may compute something else, which the inference form would ignore.
    """
    if type(module) is not known:
        raise TypeError(f"{name}: {type(module).__name__} has no form for inference; only {known.__name__} has one")


def require_same_classes(module: nn.Module, rebuilt: nn.Module) -> None:
    """`require_class` for all submodules: `rebuilt` is the same module, constructed from the config."""
    for name, part in rebuilt.named_modules():
        if name:
            require_class(name, module.get_submodule(name), type(part))
