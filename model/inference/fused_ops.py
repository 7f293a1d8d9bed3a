"""Fused element-wise operations of the mask decoder between its matrix multiplications, for any device.

On a CPU each is one Numba kernel that reads and writes memory once. On other devices it is several torch operations.
All operations may overwrite their first argument: use only the returned tensors.

Shapes: B images (1 if all prompts share one, else N), N prompts, L image tokens, C channels, F attention weights of an
image token, E pixels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def update_and_norm(
    weights_NFL: Tensor, values_NFC: Tensor, image_BLC: Tensor, positions_1LC: Tensor, norm: nn.LayerNorm
) -> tuple[Tensor, Tensor]:
    """Returns the layer norm of image + weights^T values (N, L, C), and the same plus positions."""
    if _has_kernels(image_BLC):
        from maskmill.model.inference import cpu_kernels

        tensors = weights_NFL, values_NFC, image_BLC, positions_1LC, norm.weight, norm.bias
        return cpu_kernels.update_and_norm(*tensors, norm.eps)
    image_NLC = _normalise(image_BLC + weights_NFL.mT @ values_NFC, norm).to(image_BLC.dtype)
    return image_NLC, image_NLC + positions_1LC


def norm_and_gelu(x_BCE: Tensor, constant_C: Tensor, norm: nn.LayerNorm) -> Tensor:
    """Adds a constant to each channel, then applies norm and GELU."""
    if _has_kernels(x_BCE):
        from maskmill.model.inference import upscaling_kernels

        upscaling_kernels.norm_and_gelu(x_BCE, constant_C, None, norm)
        return x_BCE
    return F.gelu(_normalise((x_BCE + constant_C[:, None]).mT, norm).mT).to(x_BCE.dtype)


def _normalise(x_NEC: Tensor, norm: nn.LayerNorm) -> Tensor:
    # `norm` itself cannot be called: `LayerNorm2d` expects channels first.
    return F.layer_norm(x_NEC.float(), norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _has_kernels(x: Tensor) -> bool:
    return x.device.type == "cpu"
