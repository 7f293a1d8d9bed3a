"""The upscaling of the mask decoder for inference: from image tokens to the logits of the chosen masks.

The published decoder upscales with two transposed convolutions. Their 2 x 2 kernels do not overlap, so each embedding
cell determines its own 4 x 4 pixels, and a convolution is a matrix multiplication of the channels of each cell. The
pixels stay grouped by cell; only the logits are arranged by row and column.

Two forms of the same function. `CellsLast` is for CPUs: norms, GELUs and the products with mask weights run along the
cells in compiled loops, prompt by prompt. `ChannelsLast` is torch operations on all prompts together.

Shapes: B images (1 if all prompts share one, else N), Z prompts with at least one chosen mask, K chosen masks, M masks
per prompt, C channels, Y X embedding grid, L = Y*X cells, E pixels, grouped by cell, h w = 4Y 4X mask logits. The four
pixels of the first step are P groups of G, those of the second step Q.
Source: `modeling/mask_decoder.py` of segment-anything, through `model/mask_decoder.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskmill.model.inference.low_rank import FactoredPrompts
from maskmill.model.layers import fast_linear
from maskmill.model.mask_decoder import DecodedPrompts

# Pixels of the first step that are processed together: 1 MiB of features with `vit_b`, 2 MiB after the second step.
GROUPED_CELLS = 4096


class ChosenMasks(NamedTuple):
    """The masks to compute."""

    decoded: DecodedPrompts
    rows_Z: Tensor  # prompts of `decoded`
    weights_ZMC: Tensor
    indices_K2: Tensor  # of each mask, in Z and M


class Upscaling(ABC):
    """The layers `output_upscaling` of a `MaskDecoder`, with products in `dtype`."""

    def __init__(self, layers: nn.Sequential, dtype: torch.dtype) -> None:
        convolution_1, norm, _, convolution_2, _ = layers
        assert isinstance(norm, nn.LayerNorm | nn.GroupNorm)
        self.norm, self.dtype = norm, dtype
        self.convolutions = [
            (layer.get_parameter("weight"), layer.get_parameter("bias")) for layer in (convolution_1, convolution_2)
        ]

    @abstractmethod
    def arrange_skip(self, skip_BChw: Tensor, steps: int) -> Tensor:
        """A skip feature that is added after one or two steps, in the layout of this form."""

    @abstractmethod
    def __call__(
        self, masks: ChosenMasks, skips: Sequence[Tensor], with_features: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """The logits (K, h, w) in float32 and, if `with_features`, the upscaled image (Z, C, h, w).

        Skips have been arranged.
        """


class ChannelsLast(Upscaling):
    """Pixels are the second axis, channels the last."""

    def __init__(self, layers: nn.Sequential, dtype: torch.dtype) -> None:
        super().__init__(layers, dtype)
        self._products = [
            (weight_io22.permute(2, 3, 1, 0).flatten(0, 2).to(dtype), bias_o.repeat(4).to(dtype))
            for weight_io22, bias_o in self.convolutions
        ]

    def arrange_skip(self, skip_BChw: Tensor, steps: int) -> Tensor:
        """Returns (B, E, C)."""
        order = (0, 2, 4, 3, 5, 1) if steps == 1 else (0, 2, 5, 3, 6, 4, 7, 1)
        return _split_pixels(skip_BChw, steps).permute(order).flatten(1, -2).to(self.dtype).contiguous()

    def __call__(
        self, masks: ChosenMasks, skips: Sequence[Tensor], with_features: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        decoded, rows_Z, weights_ZMC, indices_K2 = masks
        grid = decoded.image_tokens_NCYX.shape[-2:]
        x_ZEC = decoded.image_tokens_NCYX[rows_Z].flatten(2).transpose(1, 2)
        for i, (weight, bias) in enumerate(self._products):
            x_ZEC = F.linear(x_ZEC, weight, bias).unflatten(2, (4, -1)).flatten(1, 2)
            if skips:
                x_ZEC = x_ZEC + _of_prompts(skips[i], rows_Z)
            x_ZEC = F.gelu(x_ZEC if i else self._normalise(x_ZEC)).to(self.dtype)
        prompts_K, masks_K = indices_K2.unbind(dim=1)
        logits_ZEM = x_ZEC @ weights_ZMC.mT.to(self.dtype)
        logits_Khw = _to_rows_and_columns(logits_ZEM[prompts_K, :, masks_K].float(), grid)
        if not with_features:
            return logits_Khw, None
        features = _to_rows_and_columns(x_ZEC.mT.flatten(0, 1), grid)
        return logits_Khw, features.unflatten(0, (len(rows_Z), x_ZEC.shape[2]))

    def _normalise(self, x_ZEC: Tensor) -> Tensor:
        # `norm` itself cannot be called: it expects channels first. A group norm has one group, the whole image.
        norm, x_ZEC = self.norm, x_ZEC.float()
        if isinstance(norm, nn.GroupNorm):
            return F.layer_norm(x_ZEC, x_ZEC.shape[1:], eps=norm.eps) * norm.weight + norm.bias
        return F.layer_norm(x_ZEC, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


class CellsLast(Upscaling):
    """Channels come before cells: each step of a kernel handles many cells. For CPUs.

    The second step is done for one group of pixels after the other, so that their features stay in the caches.
    """

    def __init__(self, layers: nn.Sequential, dtype: torch.dtype, cells: int) -> None:
        super().__init__(layers, dtype)
        self._group = 4 if 4 * cells <= GROUPED_CELLS else 1
        (weight_1, bias_1), (weight_2, bias_2) = self.convolutions
        self.weight_1 = self._group_pixels(weight_1.permute(1, 2, 3, 0).flatten(1, 2)).flatten(0, 2).to(dtype)
        self._weight_2 = weight_2.permute(2, 3, 1, 0).flatten(0, 2).to(dtype).contiguous()
        self._biases = bias_1.float(), bias_2.float()

    def arrange_skip(self, skip_BChw: Tensor, steps: int) -> Tensor:
        """Returns (B, P, C, G, L) after one step, (B, P, Q, C, G, L) after two."""
        pixels = _split_pixels(skip_BChw, steps).to(self.dtype)
        if steps == 1:
            x_BC4L = pixels.permute(0, 1, 3, 5, 2, 4).flatten(4).flatten(2, 3)
            return torch.stack([self._group_pixels(x_C4L) for x_C4L in x_BC4L])
        x_BQC4L = pixels.permute(0, 4, 7, 1, 3, 6, 2, 5).flatten(6).flatten(4, 5).flatten(1, 2)
        return torch.stack([self._group_pixels(x_QC4L.flatten(0, 1)).unflatten(1, (4, -1)) for x_QC4L in x_BQC4L])

    def _group_pixels(self, x_C4L: Tensor) -> Tensor:
        """Returns (P, C, G, L)."""
        return x_C4L.unflatten(1, (-1, self._group)).transpose(0, 1).contiguous()

    def __call__(
        self, masks: ChosenMasks, skips: Sequence[Tensor], with_features: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        from maskmill.model.inference import cpu_kernels

        decoded, rows_Z, weights_ZMC, indices_K2 = masks
        Y, X = decoded.image_tokens_NCYX.shape[-2:]
        logits_Khw = weights_ZMC.new_empty(len(indices_K2), 4 * Y, 4 * X)
        weights_KC = weights_ZMC[indices_K2[:, 0], indices_K2[:, 1]]
        counts = indices_K2[:, 0].bincount(minlength=len(rows_Z)).tolist()
        features = []
        own = zip(rows_Z.tolist(), weights_KC.split(counts), logits_Khw.split(counts), strict=True)
        for n, own_weights_KC, own_logits_Khw in own:
            half_skip, full_skip = [skip[n % len(skip)] for skip in skips] or (None, None)
            full = []
            for i, half_CGL in enumerate(self._first_step(decoded, n, half_skip)):
                full_QCGL = fast_linear(self._weight_2, half_CGL.flatten(1).mT).view(4, -1, self._group, Y * X)
                skip_QCGL = None if full_skip is None else full_skip[i]
                outputs = own_weights_KC, i * self._group, X, own_logits_Khw
                cpu_kernels.gelu_and_logits(full_QCGL, self._biases[1], skip_QCGL, *outputs, with_features)
                if with_features:
                    full.append(full_QCGL)
            if with_features:
                cells = torch.stack(full).transpose(2, 3).transpose(1, 2).flatten(0, 1)
                features.append(cells.view(2, 2, 2, 2, -1, Y, X).permute(4, 5, 0, 2, 6, 1, 3).flatten(4).flatten(1, 3))
        return logits_Khw, torch.stack(features) if features else None

    def _first_step(self, decoded: DecodedPrompts, n: int, skip_PCGL: Tensor | None) -> Tensor:
        """Pixels (P, C, G, L) of one prompt after the first step, norm and GELU."""
        from maskmill.model.inference import cpu_kernels

        groups = 4 // self._group, -1, self._group
        scale_L = shared_PCGL = None
        if isinstance(decoded, FactoredPrompts):
            x_OL = decoded.factored.project(n, self.weight_1)
            scale_L, shared_PCGL = decoded.factored.scale_NL[n], decoded.factored.projected_OL.unflatten(0, groups)
        else:
            x_OL = fast_linear(self.weight_1, decoded.image_tokens_NCYX[n].flatten(1).mT)
        x_PCGL = x_OL.unflatten(0, groups)
        bias_C, norm = self._biases[0], self.norm
        if isinstance(norm, nn.LayerNorm):
            constants = norm.weight, norm.bias, norm.eps
            cpu_kernels.norm_and_gelu(x_PCGL, bias_C, skip_PCGL, scale_L, shared_PCGL, *constants)
            return x_PCGL
        x_PCGL = x_PCGL + bias_C[:, None, None]
        if scale_L is not None and shared_PCGL is not None:
            x_PCGL = x_PCGL + scale_L * shared_PCGL
        if skip_PCGL is not None:
            x_PCGL = x_PCGL + skip_PCGL
        # The whole image is one group of the norm.
        normed_1CPGL = norm(x_PCGL.transpose(0, 1)[None])
        return F.gelu(normed_1CPGL[0].transpose(0, 1)).to(self.dtype).contiguous()


def _of_prompts(skip_B: Tensor, rows_Z: Tensor) -> Tensor:
    return skip_B if len(skip_B) == 1 else skip_B[rows_Z]


def _split_pixels(x_BChw: Tensor, steps: int) -> Tensor:
    """Returns (B, C, Y, rows of each step, X, columns of each step)."""
    twos = [2] * steps  # each step splits a cell in two along both axes
    return x_BChw.unflatten(3, (-1, *twos)).unflatten(2, (-1, *twos))


def _to_rows_and_columns(x_FE: Tensor, grid: Sequence[int]) -> Tensor:
    """Arranges pixels that are grouped by cell as an image, (F, h, w)."""
    return x_FE.unflatten(1, (*grid, 2, 2, 2, 2)).permute(0, 1, 3, 5, 2, 4, 6).flatten(4, 6).flatten(1, 3)
