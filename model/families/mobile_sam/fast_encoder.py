"""TinyViT for inference: the same function in less time.

Batch normalisation is folded into the convolutions, and layer norm's scale and shift into the linear layer after it.
Windows are zero-padded after the projection to queries, keys and values, so that only cells of the image are projected.
The published code pads first, so a padding cell holds the biases of the projection. Zeros give the same result because
the biases of keys and values are not added here: the softmax over keys cancels the key bias, and attention weights sum
to one, so the value bias is added to the output as a constant.

Shapes: B images, V windows, Y X grid or window in cells, L = Y*X, C channels, U heads, D features per head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from maskmill.model.families.mobile_sam.encoder import ConvNorm, TinyVit, WindowAttention, WindowBlock
from maskmill.model.layers import convert_products, fast_linear, require_class
from maskmill.model.vitdet import join_windows, split_windows

Layer = TypeVar("Layer", bound=nn.Module)


@torch.no_grad()
def speed_up(encoder: TinyVit, dtype: torch.dtype) -> None:
    """Replaces the layers of an encoder by their inference form, in place.

    Matrix multiplications and convolutions run in `dtype`, norms and residual sums in float32. Raises TypeError for a
    layer that is a subclass of one of `encoder.py`.
    """
    _replace(encoder, ConvNorm, fold)
    _replace(encoder, WindowBlock, lambda block: FastWindowBlock(block, dtype))
    convert_products(encoder, dtype)


def _replace(encoder: TinyVit, kind: type[Layer], fast_form: Callable[[Layer], nn.Module]) -> None:
    """Replaces all layers of a class by their inference form."""
    for path, parent in list(encoder.named_modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, kind):
                require_class(f"image_encoder.{path}.{name}", layer, kind)
                setattr(parent, name, fast_form(layer))


def fold(layer: ConvNorm) -> nn.Conv2d:
    """The convolution that computes a convolution and its batch normalisation."""
    folded = fuse_conv_bn_eval(layer.c, layer.bn)
    # Its output is stored channels-last, too, and that of all layers after it.
    folded.weight.data = folded.weight.data.contiguous(memory_format=torch.channels_last)
    return folded


class FastWindowBlock(nn.Module):
    """`WindowBlock` for inference, after `fold`."""

    def __init__(self, block: WindowBlock, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype
        self.local_conv, self.mlp = block.local_conv, block.mlp
        self.attn = FastWindowAttention(block.attn, block.window_size, dtype)

    def forward(self, x_BCYX: Tensor) -> Tensor:
        x_BYXC = x_BCYX.permute(0, 2, 3, 1).contiguous()
        x_BYXC = x_BYXC + self.attn(x_BYXC)
        x_BYXC = self.local_conv(x_BYXC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        norm, fc1, fc2 = self.mlp.norm, self.mlp.fc1, self.mlp.fc2
        hidden = F.gelu(fast_linear(norm(x_BYXC).to(self._dtype), fc1.weight, fc1.bias))
        return (x_BYXC + fast_linear(hidden, fc2.weight, fc2.bias)).permute(0, 3, 1, 2)


class FastWindowAttention(nn.Module):
    """`WindowAttention` for inference, with the split into windows."""

    _qkv_weight: Tensor
    _qkv_bias: Tensor
    _proj_weight: Tensor
    _proj_bias: Tensor
    _position_bias_1ULL: Tensor

    def __init__(self, attention: WindowAttention, window_size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.heads, self.window_size = attention.heads, window_size
        self.normalized_shape, self.eps = attention.norm.normalized_shape, attention.norm.eps
        norm, qkv, proj = attention.norm, attention.qkv, attention.proj
        # From (U, 3, D, C) to (3, U, D, C): one contiguous matrix each for queries, keys and values.
        weight_3UDC = qkv.weight.unflatten(0, (self.heads, 3, -1)).transpose(0, 1)
        bias_3UD = (qkv.bias + qkv.weight @ norm.bias).unflatten(0, (self.heads, 3, -1)).transpose(0, 1)
        query_bias, _, value_bias = bias_3UD
        derived = {
            "_qkv_weight": (weight_3UDC * norm.weight).flatten(0, 2),
            "_qkv_bias": torch.cat([query_bias, torch.zeros_like(query_bias), torch.zeros_like(query_bias)]).flatten(),
            "_proj_weight": proj.weight,
            "_proj_bias": proj(value_bias.flatten()),
            "_position_bias_1ULL": attention.position_bias()[None],
        }
        for name, tensor in derived.items():
            self.register_buffer(name, tensor.detach().to(dtype).contiguous(), persistent=False)

    def forward(self, x_BYXC: Tensor) -> Tensor:
        normed_BYXC = F.layer_norm(x_BYXC, self.normalized_shape, eps=self.eps).to(self._qkv_weight.dtype)
        qkv_VYXC = split_windows(fast_linear(normed_BYXC, self._qkv_weight, self._qkv_bias), self.window_size)
        qkv_V3ULD = qkv_VYXC.flatten(1, 2).unflatten(-1, (3, self.heads, -1)).permute(0, 2, 3, 1, 4)
        x_VULD = F.scaled_dot_product_attention(*qkv_V3ULD.unbind(1), attn_mask=self._position_bias_1ULL)
        x_VYXC = x_VULD.transpose(1, 2).reshape(*qkv_VYXC.shape[:3], -1)
        x_BYXC = join_windows(x_VYXC, self.window_size, grid=x_BYXC.shape[1:3])
        return fast_linear(x_BYXC, self._proj_weight, self._proj_bias)
