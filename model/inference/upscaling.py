"""The upscaling of the mask decoder for inference: from image tokens to the logits of the chosen masks.

The published decoder upscales with two transposed convolutions. Their 2 x 2 kernels do not overlap, so each embedding
cell determines its own 4 x 4 pixels, and a convolution is a matrix multiplication of the channels of each cell. The
pixels stay grouped by cell; only the logits are arranged by row and column.

Two forms of the same function. `CellsLast` is for CPUs: compiled loops along the cells, prompt by prompt.
`ChannelsLast` is torch operations on all prompts together.

Shapes: B images (1 if all prompts share one, else N), Z prompts with at least one chosen mask, K chosen masks, M masks
per prompt, C channels, D of them after the second step, Y X embedding grid, L = Y*X cells, E pixels, grouped by cell,
h w = 4Y 4X mask logits, P Q the four pixels of the first and second step.
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


class ChosenMasks(NamedTuple):
    """The masks to compute."""

    decoded: DecodedPrompts
    rows_Z: Tensor  # prompts of `decoded`
    weights_ZMC: Tensor
    indices_K2: Tensor  # of each mask, in Z and M


class _Prompt(NamedTuple):
    """One prompt of `decoded`: what its masks are computed from, and where they are written."""

    decoded: DecodedPrompts
    n: int
    half_skip_PCL: Tensor | None
    full_skip_PQDL: Tensor | None
    mask_weights_KD: Tensor
    grid_width: int
    logits_Khw: Tensor
    features_PQDL: Tensor | None


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
    """Channels come before cells: each step of a kernel handles many cells. For CPUs."""

    def __init__(self, layers: nn.Sequential, dtype: torch.dtype) -> None:
        super().__init__(layers, dtype)
        (weight_1, bias_1), (weight_2, bias_2) = self.convolutions
        self.weight_1 = weight_1.permute(2, 3, 1, 0).flatten(0, 2).to(dtype).contiguous()
        self._weight_2 = weight_2.permute(2, 3, 1, 0).flatten(0, 2).to(dtype).contiguous()
        self._biases = bias_1.float(), bias_2.float()

    def arrange_skip(self, skip_BChw: Tensor, steps: int) -> Tensor:
        """Returns (B, P, C, L) after one step, (B, P, Q, C, L) after two."""
        pixels = _split_pixels(skip_BChw, steps).to(self.dtype)
        if steps == 1:
            return pixels.permute(0, 3, 5, 1, 2, 4).flatten(4).flatten(1, 2).contiguous()
        return pixels.permute(0, 3, 6, 4, 7, 1, 2, 5).flatten(6).flatten(3, 4).flatten(1, 2).contiguous()

    def __call__(
        self, masks: ChosenMasks, skips: Sequence[Tensor], with_features: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        decoded, rows_Z, weights_ZMC, indices_K2 = masks
        Y, X = decoded.image_tokens_NCYX.shape[-2:]
        logits_Khw = weights_ZMC.new_empty(len(indices_K2), 4 * Y, 4 * X)
        weights_KD = weights_ZMC[indices_K2[:, 0], indices_K2[:, 1]]
        features_ZPQDL = weights_ZMC.new_empty(
            len(rows_Z) if with_features else 0, 4, 4, weights_ZMC.shape[2], Y * X, dtype=self.dtype
        )
        counts = indices_K2[:, 0].bincount(minlength=len(rows_Z)).tolist()
        own = zip(rows_Z.tolist(), weights_KD.split(counts), logits_Khw.split(counts), strict=True)
        for z, (n, own_weights_KD, own_logits_Khw) in enumerate(own):
            half_skip, full_skip = [skip[n % len(skip)] for skip in skips] or (None, None)
            features = features_ZPQDL[z] if with_features else None
            prompt = _Prompt(decoded, n, half_skip, full_skip, own_weights_KD, X, own_logits_Khw, features)
            if self.dtype == torch.float32 and isinstance(self.norm, nn.LayerNorm):
                self._upscale(prompt)
            else:
                self._upscale_in_steps(prompt)
        if not with_features:
            return logits_Khw, None
        by_pixel = features_ZPQDL.unflatten(4, (Y, X)).unflatten(2, (2, 2)).unflatten(1, (2, 2))
        return logits_Khw, by_pixel.permute(0, 5, 6, 1, 3, 7, 2, 4).flatten(5).flatten(2, 4)

    def _upscale(self, prompt: _Prompt) -> None:
        """Both steps in one kernel."""
        from maskmill.model.inference import upscaling_kernels as kernels

        decoded, n, half_skip_PCL, full_skip_PQDL, weights_KD, width, logits_Khw, features_PQDL = prompt
        if isinstance(decoded, FactoredPrompts):
            factored = decoded.factored
            weight_OR, x_RL = fast_linear(self.weight_1, factored.basis_NRC[n]), factored.coefficients_NRL[n]
            scale_L, shared_OL = factored.scale_NL[n], factored.projected_OL
        else:
            shared_OL = fast_linear(self.weight_1, decoded.image_tokens_NCYX[n].flatten(1).mT)
            scale_L = shared_OL.new_ones(shared_OL.shape[1])
            weight_OR, x_RL = self.weight_1[:, :0].contiguous(), shared_OL[:0]
        shared_PCL = shared_OL.unflatten(0, (4, -1))
        first = kernels.FirstStep(weight_OR, x_RL, scale_L, shared_PCL, self._biases[0], half_skip_PCL)
        second = kernels.SecondStep(self._weight_2, self._biases[1], full_skip_PQDL)
        assert isinstance(self.norm, nn.LayerNorm)
        kernels.upscale(first, self.norm, second, weights_KD, width, logits_Khw, features_PQDL)

    def _upscale_in_steps(self, prompt: _Prompt) -> None:
        """The same for other dtypes and norms, with the products in oneDNN."""
        from maskmill.model.inference import upscaling_kernels as kernels

        decoded, n, half_skip_PCL, full_skip_PQDL, weights_KD, width, logits_Khw, features_PQDL = prompt
        half_PCL = self._first_step(decoded, n, half_skip_PCL)
        for p, half_CL in enumerate(half_PCL):
            full_QDL = fast_linear(self._weight_2, half_CL.mT).unflatten(0, (4, -1))
            skip_QDL = None if full_skip_PQDL is None else full_skip_PQDL[p]
            kernels.gelu_and_logits(full_QDL, self._biases[1], skip_QDL, weights_KD, p, width, logits_Khw)
            if features_PQDL is not None:
                features_PQDL[p] = full_QDL

    def _first_step(self, decoded: DecodedPrompts, n: int, skip_PCL: Tensor | None) -> Tensor:
        """Pixels (P, C, L) of one prompt after the first step, norm and GELU."""
        from maskmill.model.inference import upscaling_kernels as kernels

        if isinstance(decoded, FactoredPrompts):
            x_OL = decoded.factored.project(n, self.weight_1)
        else:
            x_OL = fast_linear(self.weight_1, decoded.image_tokens_NCYX[n].flatten(1).mT)
        x_PCL, bias_C, norm = x_OL.unflatten(0, (4, -1)), self._biases[0], self.norm
        if isinstance(norm, nn.LayerNorm):
            kernels.norm_and_gelu(x_PCL, bias_C, skip_PCL, norm)
            return x_PCL
        x_PCL = x_PCL + bias_C[:, None]
        if skip_PCL is not None:
            x_PCL = x_PCL + skip_PCL
        # The whole image is one group of the norm.
        normed_1CPL = norm(x_PCL.transpose(0, 1)[None])
        return F.gelu(normed_1CPL[0].transpose(0, 1)).to(self.dtype).contiguous()


def _of_prompts(skip_B: Tensor, rows_Z: Tensor) -> Tensor:
    return skip_B if len(skip_B) == 1 else skip_B[rows_Z]


def _split_pixels(x_BChw: Tensor, steps: int) -> Tensor:
    """Returns (B, C, Y, rows of each step, X, columns of each step)."""
    twos = [2] * steps  # each step splits a cell in two along both axes
    return x_BChw.unflatten(3, (-1, *twos)).unflatten(2, (-1, *twos))


def _to_rows_and_columns(x_FE: Tensor, grid: Sequence[int]) -> Tensor:
    """Arranges pixels that are grouped by cell as an image, (F, h, w)."""
    return x_FE.unflatten(1, (*grid, 2, 2, 2, 2)).permute(0, 1, 3, 5, 2, 4, 6).flatten(4, 6).flatten(1, 3)
