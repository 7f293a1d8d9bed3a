"""Fused element-wise operations of the mask decoder between its matrix multiplications.

On a CPU each is one Numba kernel that reads and writes memory once. On other devices it is several torch operations.
All operations may overwrite their first argument: use only the returned tensors.

Shapes: B images (1 if all prompts share one, else N), N prompts, L image tokens, C channels, F attention weights of an
image token, M masks per prompt, K chosen masks, Y X embedding grid, E pixels of an upscaled image, grouped by cell (E =
16 * L after both steps).
"""

from __future__ import annotations

from collections.abc import Sequence

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


def norm_and_gelu(x_NEC: Tensor, skip_BEC: Tensor | None, norm: nn.LayerNorm | nn.GroupNorm) -> Tensor:
    """Adds the skip features, then applies norm and GELU. A group norm has one group: it normalises whole images."""
    if isinstance(norm, nn.GroupNorm):
        x_NEC = _add(x_NEC, skip_BEC)
        normed_NEC = F.layer_norm(x_NEC.float(), x_NEC.shape[1:], eps=norm.eps)
        return F.gelu(normed_NEC * norm.weight + norm.bias).to(x_NEC.dtype)
    if _has_kernels(x_NEC):
        from maskmill.model.inference import cpu_kernels

        cpu_kernels.norm_and_gelu(x_NEC, skip_BEC, norm.weight, norm.bias, norm.eps)
        return x_NEC
    return F.gelu(_normalise(_add(x_NEC, skip_BEC), norm)).to(x_NEC.dtype)


def gelu(x_NEC: Tensor, skip_BEC: Tensor | None) -> Tensor:
    """Adds the skip features, then applies GELU."""
    if _has_kernels(x_NEC):
        from maskmill.model.inference import cpu_kernels

        cpu_kernels.gelu(x_NEC, skip_BEC)
        return x_NEC
    return F.gelu(_add(x_NEC, skip_BEC))


def to_pixels(logits_NEM: Tensor, chosen_K2: Tensor, grid: Sequence[int]) -> Tensor:
    """Arranges logits by row and column: (K, 4Y, 4X) float32.

    `chosen_K2` holds the prompt and mask index of each chosen mask, `grid` is (Y, X). The 16 pixels of a cell are
    stored in the order of the two 2 x 2 upsampling steps.
    """
    if _has_kernels(logits_NEM):
        from maskmill.model.inference import cpu_kernels

        return cpu_kernels.to_pixels(logits_NEM, chosen_K2, grid)
    logits_KE = logits_NEM[chosen_K2[:, 0], :, chosen_K2[:, 1]].float()
    cells = logits_KE.unflatten(1, (*grid, 2, 2, 2, 2)).permute(0, 1, 3, 5, 2, 4, 6)
    return cells.flatten(1, 3).flatten(2, 4)


def _add(x_NEC: Tensor, skip_BEC: Tensor | None) -> Tensor:
    return x_NEC if skip_BEC is None else x_NEC + skip_BEC


def _normalise(x_NEC: Tensor, norm: nn.LayerNorm) -> Tensor:
    # `norm` itself cannot be called: `LayerNorm2d` expects channels first.
    return F.layer_norm(x_NEC.float(), norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _has_kernels(x: Tensor) -> bool:
    return x.device.type == "cpu"
