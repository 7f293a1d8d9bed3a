"""The mask decoder arranged for inference: the same function, token by token from end to end.

The published one keeps images channel by channel between its upscaling layers. As their kernels do not overlap, each
embedding cell makes its pixels by itself: here the layers are products of rows of channels, and only the logits, which
are few, are put in the order of pixels.

Shapes: B images (1 where all prompts share one, else N), N prompts, R prompts with a mask, M masks per prompt, K chosen
masks, C channels, H W embedding grid, L = H*W.
Source: `modeling/mask_decoder.py` of segment-anything, by way of `model/mask_decoder.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from maskmill.model import fused_ops
from maskmill.model.config import SamConfig
from maskmill.model.image_encoder import ImageEmbedding
from maskmill.model.layers import fast_linear, require_same_classes
from maskmill.model.mask_decoder import DecodedPrompts, MaskDecoder
from maskmill.model.token_side import PreparedImage, TokenSideTransformer
from maskmill.model.transformer import TwoWayTransformer


@dataclass(frozen=True)
class _Prepared:
    """What is computed of an embedding ahead of all prompts without a mask."""

    image: PreparedImage
    skips: tuple[Tensor, ...]  # (B, 4L, C/4) and (B, 16L, C/8): cell by cell, as the doublings make the pixels


class FastMaskDecoder(MaskDecoder):
    """A `MaskDecoder` for inference, with the weights that the given one has now.

    Image tokens are computed in a dtype of choice, prompt tokens and predicted IoUs in float32. Keeps what it computed
    of an embedding as long as that is there. Raises TypeError where a part is of another class than in `MaskDecoder`.
    """

    def __init__(self, config: SamConfig, decoder: MaskDecoder, dtype: torch.dtype) -> None:
        with torch.device("meta"):
            super().__init__(config)
        self.load_state_dict(decoder.state_dict(), assign=True)
        require_same_classes(decoder, self)
        self._dtype = dtype
        assert isinstance(self.transformer, TwoWayTransformer)
        self._token_side = TokenSideTransformer(self.transformer, dtype)
        double_1, _, _, double_2, _ = self.output_upscaling
        self._double_1, self._double_2 = (_as_linear(double, dtype) for double in (double_1, double_2))
        self._prepared: WeakKeyDictionary[ImageEmbedding, _Prepared] = WeakKeyDictionary()

    def decode_prompts(
        self, embedding: ImageEmbedding, positions_1CYX: Tensor, sparse_NTC: Tensor, dense_NCYX: Tensor
    ) -> DecodedPrompts:
        """See `MaskDecoder`. What it returns is for its own `decode_masks`: the skips lie pixel by pixel."""
        without_mask = dense_NCYX.shape[-2:] == (1, 1)  # one embedding for all cells
        prepared = self._prepared.get(embedding) if without_mask else None
        if prepared is None:
            prepared = self._prepare(embedding, positions_1CYX, dense_NCYX)
            if without_mask:
                self._prepared[embedding] = prepared
        output_tokens_OC = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens_NTC = torch.cat([output_tokens_OC.expand(len(sparse_NTC), -1, -1), sparse_NTC], dim=1)
        tokens_NTC, image_NLC = self._token_side(tokens_NTC, prepared.image)
        return DecodedPrompts(
            predicted_iou_NM=self.iou_prediction_head(tokens_NTC[:, 0]),
            mask_tokens_NMC=tokens_NTC[:, 1 : 1 + self.num_masks],
            image_tokens_NCHW=image_NLC.transpose(1, 2).unflatten(2, embedding.grid_BEHW.shape[-2:]),
            skips=prepared.skips,
        )

    def _prepare(self, embedding: ImageEmbedding, positions_1CYX: Tensor, dense_NCYX: Tensor) -> _Prepared:
        image_BLC = (embedding.grid_BEHW + dense_NCYX).flatten(2).transpose(1, 2)
        image = self._token_side.prepare(image_BLC, positions_1CYX.flatten(2).transpose(1, 2))
        H, W = embedding.grid_BEHW.shape[-2:]
        skips = []
        for skip, doublings in zip(embedding.skips, (1, 2), strict=False):
            pairs = [2] * doublings
            cells = skip.unflatten(3, (W, *pairs)).unflatten(2, (H, *pairs))
            # From B, C, H, its pairs, W, its pairs to B, H, W, the pairs of each doubling, C.
            order = [0, 2, 3 + doublings, *(axis + i for i in range(doublings) for axis in (3, 4 + doublings)), 1]
            skips.append(cells.permute(order).flatten(1, -2).to(self._dtype).contiguous())
        return _Prepared(image, tuple(skips))

    def decode_masks(self, decoded: DecodedPrompts, keep_NM: Tensor) -> Tensor:
        """See `MaskDecoder`. Logits are float32."""
        device = decoded.mask_tokens_NMC.device
        rows = keep_NM.any(dim=1).nonzero()[:, 0]
        chosen_K2 = keep_NM[rows].nonzero().to(device, non_blocking=True)
        rows = rows.to(device, non_blocking=True)
        tokens_ZLC = decoded.image_tokens_NCHW.flatten(2).transpose(1, 2)[rows]
        skips = [skip if len(skip) == 1 else skip[rows] for skip in decoded.skips] or [None, None]
        half_ZEC = fast_linear(tokens_ZLC, *self._double_1).unflatten(2, (4, -1)).flatten(1, 2)
        norm = self.output_upscaling[1]
        assert isinstance(norm, nn.LayerNorm)
        half_ZEC = fused_ops.norm_and_gelu(half_ZEC, skips[0], norm)
        full_ZEC = fast_linear(half_ZEC, *self._double_2).unflatten(2, (4, -1)).flatten(1, 2)
        full_ZEC = fused_ops.gelu(full_ZEC, skips[1])
        mlps = self.output_hypernetworks_mlps
        weights_ZMC = torch.stack([mlp(decoded.mask_tokens_NMC[rows, i]) for i, mlp in enumerate(mlps)], dim=1)
        logits_ZEM = full_ZEC @ weights_ZMC.transpose(1, 2).to(self._dtype)
        return fused_ops.to_pixels(logits_ZEM, chosen_K2, decoded.image_tokens_NCHW.shape[-2:])


def _as_linear(convolution: nn.Module, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Weight and bias that make of a cell its 2 x 2 pixels, pixel by pixel."""
    weight_io22, bias_o = convolution.get_parameter("weight"), convolution.get_parameter("bias")
    return weight_io22.permute(2, 3, 1, 0).flatten(0, 2).to(dtype), bias_o.repeat(4).to(dtype)
