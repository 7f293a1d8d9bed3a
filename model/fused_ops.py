"""Fused element-wise operations of the mask decoder between its matrix multiplications.

On a CPU each is one Numba kernel that reads and writes memory once; elsewhere it is several torch operations. An
operation that is documented as in place may or may not overwrite its argument: use only the returned tensor.

Shapes: B images (1 where all prompts share one, else N), N prompts, L image tokens, X pixels, C channels, M masks per
prompt, K chosen masks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


def add_and_norm(
    attended_NLC: Tensor, image_BLC: Tensor, positions_1LC: Tensor, norm: nn.LayerNorm
) -> tuple[Tensor, Tensor]:
    """Layer norm of the sum of the first two, in place of the first; and the same with positions added."""
    if _has_kernels(attended_NLC):
        from maskmill.model import cpu_kernels

        return attended_NLC, cpu_kernels.add_and_norm(
            attended_NLC, image_BLC, positions_1LC, norm.weight, norm.bias, norm.eps
        )
    image_NLC = _normalise(image_BLC + attended_NLC, norm).to(attended_NLC.dtype)
    return image_NLC, image_NLC + positions_1LC


def norm_and_gelu(x_NEC: Tensor, skip_BEC: Tensor | None, norm: nn.LayerNorm) -> Tensor:
    """The skip added, layer norm, GELU; in place of the first."""
    if _has_kernels(x_NEC):
        from maskmill.model import cpu_kernels

        cpu_kernels.norm_and_gelu(x_NEC, skip_BEC, norm.weight, norm.bias, norm.eps)
        return x_NEC
    return F.gelu(_normalise(_add(x_NEC, skip_BEC), norm)).to(x_NEC.dtype)


def gelu(x_NEC: Tensor, skip_BEC: Tensor | None) -> Tensor:
    """The skip added, GELU; in place of the first."""
    if _has_kernels(x_NEC):
        from maskmill.model import cpu_kernels

        cpu_kernels.gelu(x_NEC, skip_BEC)
        return x_NEC
    return F.gelu(_add(x_NEC, skip_BEC))


def to_pixels(logits_NEM: Tensor, chosen_K2: Tensor, grid: Sequence[int]) -> Tensor:
    """Logits (K, 4H, 4W), float32, of chosen prompts and masks, of a grid (H, W) of cells whose 16 pixels lie as two
    doublings made them.
    """
    if _has_kernels(logits_NEM):
        from maskmill.model import cpu_kernels

        return cpu_kernels.to_pixels(logits_NEM, chosen_K2, grid)
    logits_KE = logits_NEM[chosen_K2[:, 0], :, chosen_K2[:, 1]].float()
    cells = logits_KE.unflatten(1, (*grid, 2, 2, 2, 2)).permute(0, 1, 3, 5, 2, 4, 6)
    return cells.flatten(1, 3).flatten(2, 4)


def _add(x_NEC: Tensor, skip_BEC: Tensor | None) -> Tensor:
    return x_NEC if skip_BEC is None else x_NEC + skip_BEC


def _normalise(x_NEC: Tensor, norm: nn.LayerNorm) -> Tensor:
    # Not by calling it: a `LayerNorm2d` expects channels first.
    return F.layer_norm(x_NEC.float(), norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _has_kernels(x: Tensor) -> bool:
    return x.device.type == "cpu"
