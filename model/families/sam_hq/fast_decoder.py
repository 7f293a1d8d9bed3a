"""The mask decoder of SAM-HQ for inference: the same function in less time.

The last convolution of the details is linear, and so is their product with the weights of the high-quality token. Both
are one convolution to a single channel, with its own kernel for each prompt.

Shapes: B images (1 if all prompts share one, else N), Z prompts with at least one chosen mask, K chosen masks, C
channels, Y X embedding grid, h w = 4Y 4X mask logits, E = h*w pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskmill.model.embedding import ImageEmbedding
from maskmill.model.families.sam_hq.config import SamHqConfig
from maskmill.model.families.sam_hq.decoder import HqMaskDecoder
from maskmill.model.inference import fused_ops
from maskmill.model.inference.fast_decoder import FastMaskDecoder
from maskmill.model.inference.upscaling import ChosenMasks
from maskmill.model.mask_decoder import DecodedPrompts


class FastHqMaskDecoder(FastMaskDecoder, HqMaskDecoder):
    """An `HqMaskDecoder` for inference, see `FastMaskDecoder`."""

    CPU_BLOCK = 1  # the features of several prompts would not fit in the caches

    def __init__(self, config: SamHqConfig, decoder: HqMaskDecoder, dtype: torch.dtype) -> None:
        super().__init__(config, decoder, dtype)
        widen, _, _, narrow = self.embedding_maskfeature
        # Tuples: tensors that are attributes would become further parameters of this module.
        self._widen = widen.get_parameter("weight").to(dtype), widen.get_parameter("bias").float()
        # A convolution gathers from an offset, `F.fold` scatters to it: the kernel is flipped.
        self._narrow = narrow.get_parameter("weight").flip(2, 3).flatten(2), narrow.get_parameter("bias")

    def _prepare_skips(self, embedding: ImageEmbedding) -> tuple[Tensor, ...]:
        """The features of the image, (B, C, E)."""
        return (self.image_features(embedding).flatten(2).to(self._dtype),)

    def _logits_of(self, decoded: DecodedPrompts, rows_Z: Tensor, mask_tokens_ZMC: Tensor, chosen_K2: Tensor) -> Tensor:
        weights_ZMC = self.mask_weights(mask_tokens_ZMC)
        masks = ChosenMasks(decoded, rows_Z, weights_ZMC, chosen_K2)
        logits_Khw, full_ZChw = self._upscaling(masks, [], with_features=True)
        if full_ZChw is None:
            return logits_Khw
        (features_BCE,) = decoded.skips
        features_BCE = features_BCE if len(features_BCE) == 1 else features_BCE[rows_Z]
        hq_Khw = self._hq_logits(full_ZChw, mask_tokens_ZMC[:, -1], features_BCE)[chosen_K2[:, 0]]
        return hq_Khw if self.hq_token_only else logits_Khw + hq_Khw

    def _hq_logits(self, full_ZChw: Tensor, hq_tokens_ZC: Tensor, features_BCE: Tensor) -> Tensor:
        """The logits (Z, h, w) of the high-quality token."""
        h, w = full_ZChw.shape[-2:]
        weight, bias_C = self._widen
        norm = self.embedding_maskfeature[1]
        assert isinstance(norm, nn.LayerNorm)
        wide_ZCE = F.conv2d(full_ZChw, weight, padding=1).flatten(2)
        wide_ZCE = fused_ops.norm_and_gelu(wide_ZCE, bias_C, norm)
        weights_ZC = self.hf_mlp(hq_tokens_ZC)
        narrow_OC9, narrow_bias_O = self._narrow
        kernel_Z9C = torch.einsum("zo,oci->zic", weights_ZC, narrow_OC9).to(self._dtype)
        hq_ZE = F.fold((kernel_Z9C @ wide_ZCE).float(), (h, w), kernel_size=3, padding=1).flatten(1)
        hq_ZE = hq_ZE + (weights_ZC[:, None].to(self._dtype) @ features_BCE)[:, 0]
        hq_ZE = hq_ZE + (weights_ZC @ narrow_bias_O)[:, None]
        return hq_ZE.unflatten(1, (h, w))
