"""The mask decoder of SAM-HQ for inference: the same function in less time.

The last convolution of the details is linear, and so is their product with the weights of the high-quality token. Both
are one convolution to a single channel, with its own kernel for each prompt.

Shapes: B images (1 if all prompts share one, else N), Z prompts with at least one chosen mask, K chosen masks, C
channels, Y X embedding grid, h w = 4Y 4X mask logits, E = h*w pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskmill.model.embedding import ImageEmbedding
from maskmill.model.families.sam_hq.config import SamHqConfig
from maskmill.model.families.sam_hq.decoder import HqMaskDecoder
from maskmill.model.inference import fused_ops
from maskmill.model.inference.fast_decoder import FastMaskDecoder


class FastHqMaskDecoder(FastMaskDecoder, HqMaskDecoder):
    """An `HqMaskDecoder` for inference, see `FastMaskDecoder`."""

    def __init__(self, config: SamHqConfig, decoder: HqMaskDecoder, dtype: torch.dtype) -> None:
        super().__init__(config, decoder, dtype)
        widen, _, _, narrow = self.embedding_maskfeature
        # Tuples: tensors that are attributes would become further parameters of this module.
        self._widen = widen.get_parameter("weight").to(dtype), widen.get_parameter("bias").to(dtype)
        # A convolution gathers from an offset, `F.fold` scatters to it: the kernel is flipped.
        self._narrow = narrow.get_parameter("weight").flip(2, 3).flatten(2), narrow.get_parameter("bias")

    def _prepare_skips(self, embedding: ImageEmbedding) -> tuple[Tensor, ...]:
        """The features of the image, (B, C, E)."""
        return (self.image_features(embedding).flatten(2).to(self._dtype),)

    def _upscaling_skips(self, skips: Sequence[Tensor]) -> Sequence[Tensor]:
        return []

    def _add_details(
        self, logits_Khw: Tensor, full_ZEC: Tensor, mask_tokens_ZMC: Tensor, skips: Sequence[Tensor], prompts_K: Tensor
    ) -> Tensor:
        h, w = logits_Khw.shape[-2:]
        cells = full_ZEC.unflatten(1, (h // 4, w // 4, 2, 2, 2, 2)).permute(0, 1, 3, 5, 2, 4, 6, 7)
        full_ZhwC = cells.flatten(1, 3).flatten(2, 4)
        weight, bias = self._widen
        wide_ZChw = F.conv2d(full_ZhwC.permute(0, 3, 1, 2), weight, bias, padding=1)
        wide_ZEC = wide_ZChw.permute(0, 2, 3, 1).flatten(1, 2).contiguous()
        norm = self.embedding_maskfeature[1]
        assert isinstance(norm, nn.LayerNorm)
        wide_ZEC = fused_ops.norm_and_gelu(wide_ZEC, None, norm)
        weights_ZC = self.hf_mlp(mask_tokens_ZMC[:, -1])
        narrow_OC9, narrow_bias_O = self._narrow
        kernel_ZC9 = torch.einsum("zo,oci->zci", weights_ZC, narrow_OC9).to(self._dtype)
        products_Z9E = (wide_ZEC @ kernel_ZC9).mT.float()
        hq_ZE = F.fold(products_Z9E, (h, w), kernel_size=3, padding=1).flatten(1)
        (features_BCE,) = skips
        hq_ZE = hq_ZE + (weights_ZC[:, None].to(self._dtype) @ features_BCE)[:, 0]
        hq_ZE = hq_ZE + (weights_ZC @ narrow_bias_O)[:, None]
        hq_Khw = hq_ZE.unflatten(1, (h, w))[prompts_K]
        return hq_Khw if self.hq_token_only else logits_Khw + hq_Khw
