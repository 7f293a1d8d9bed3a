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

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import SamConfig
from model.image_encoder import ImageEmbedding
from model.layers import fast_linear
from model.mask_decoder import DecodedPrompts, MaskDecoder
from model.token_side import PreparedImage, TokenSideTransformer
from model.transformer import TwoWayTransformer


@dataclass(frozen=True)
class _Prepared:
    """What is computed of an embedding ahead of all prompts without a mask."""

    embedding: ImageEmbedding
    image: PreparedImage
    skips: tuple[Tensor, ...]  # (B, 4L, C/4) and (B, 16L, C/8): cell by cell, as the doublings make the pixels


class FastMaskDecoder(MaskDecoder):
    """A `MaskDecoder` for inference, with the weights that the given one has now.

    Image tokens are computed in a dtype of choice, prompt tokens and predicted IoUs in float32. Keeps what it computed
    of the last embedding.
    """

    def __init__(self, config: SamConfig, decoder: MaskDecoder, dtype: torch.dtype) -> None:
        with torch.device("meta"):
            super().__init__(config)
        self.load_state_dict(decoder.state_dict(), assign=True)
        self._dtype = dtype
        assert isinstance(self.transformer, TwoWayTransformer)
        self._token_side = TokenSideTransformer(self.transformer, dtype)
        double_1, norm, _, double_2, _ = self.output_upscaling
        assert isinstance(norm, nn.LayerNorm)
        self._norm = norm
        self._double_1, self._double_2 = (_as_linear(double, dtype) for double in (double_1, double_2))
        self._last: _Prepared | None = None

    def decode_prompts(
        self, embedding: ImageEmbedding, positions_1CHW: Tensor, sparse_NTC: Tensor, dense_NCHW: Tensor
    ) -> DecodedPrompts:
        """See `MaskDecoder`. What it returns is for its own `decode_masks`: the skips lie pixel by pixel."""
        without_mask = dense_NCHW.shape[-2:] == (1, 1)  # one embedding for all cells
        prepared = self._last
        if prepared is None or prepared.embedding is not embedding or not without_mask:
            prepared = self._prepare(embedding, positions_1CHW, dense_NCHW)
            if without_mask:
                self._last = prepared
        output_tokens_KC = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens_NTC = torch.cat([output_tokens_KC.expand(len(sparse_NTC), -1, -1), sparse_NTC], dim=1)
        tokens_NTC, image_NLC = self._token_side(tokens_NTC, prepared.image)
        return DecodedPrompts(
            predicted_iou_NM=self.iou_prediction_head(tokens_NTC[:, 0]),
            mask_tokens_NMC=tokens_NTC[:, 1 : 1 + self.num_masks],
            image_tokens_NCHW=image_NLC.transpose(1, 2).unflatten(2, embedding.grid_BEHW.shape[-2:]),
            skips=prepared.skips,
        )

    def _prepare(self, embedding: ImageEmbedding, positions_1CHW: Tensor, dense_NCHW: Tensor) -> _Prepared:
        image_BLC = (embedding.grid_BEHW + dense_NCHW).flatten(2).transpose(1, 2)
        image = self._token_side.prepare(image_BLC, positions_1CHW.flatten(2).transpose(1, 2))
        H, W = embedding.grid_BEHW.shape[-2:]
        skips = []
        for skip, doublings in zip(embedding.skips, (1, 2), strict=False):
            pairs = [2] * doublings
            cells = skip.unflatten(3, (W, *pairs)).unflatten(2, (H, *pairs))
            # From B, C, H, its pairs, W, its pairs to B, H, W, the pairs of each doubling, C.
            order = [0, 2, 3 + doublings, *(axis + i for i in range(doublings) for axis in (3, 4 + doublings)), 1]
            skips.append(cells.permute(order).flatten(1, -2).to(self._dtype).contiguous())
        return _Prepared(embedding, image, tuple(skips))

    def decode_masks(self, decoded: DecodedPrompts, keep_NM: Tensor) -> Tensor:
        """See `MaskDecoder`. Logits are float32."""
        rows = keep_NM.any(dim=1).nonzero()[:, 0]
        tokens_RLC = decoded.image_tokens_NCHW.flatten(2).transpose(1, 2)[rows]
        skips = [skip if len(skip) == 1 else skip[rows] for skip in decoded.skips] or [None, None]
        half_RXC = fast_linear(tokens_RLC, *self._double_1).unflatten(2, (4, -1)).flatten(1, 2)
        half_RXC = _norm_and_gelu(half_RXC, skips[0], self._norm)
        full_RXC = fast_linear(half_RXC, *self._double_2).unflatten(2, (4, -1)).flatten(1, 2)
        full_RXC = _gelu(full_RXC, skips[1])
        mlps = self.output_hypernetworks_mlps
        weights_RMC = torch.stack([mlp(decoded.mask_tokens_NMC[rows, i]) for i, mlp in enumerate(mlps)], dim=1)
        logits_RXM = full_RXC @ weights_RMC.transpose(1, 2).to(self._dtype)
        return _to_pixels(logits_RXM, keep_NM[rows], decoded.image_tokens_NCHW.shape[-2:])


# A CPU makes one pass over memory of each of these; a GPU, whose compiler can, several.


def _norm_and_gelu(x_RXC: Tensor, skip_BXC: Tensor | None, norm: nn.LayerNorm) -> Tensor:
    if x_RXC.device.type == "cpu":
        from model import cpu_kernels

        cpu_kernels.norm_and_gelu(x_RXC, skip_BXC, norm.weight, norm.bias, norm.eps)
        return x_RXC
    x_RXC = x_RXC if skip_BXC is None else x_RXC + skip_BXC
    return F.gelu(norm(x_RXC.float())).to(x_RXC.dtype)


def _gelu(x_RXC: Tensor, skip_BXC: Tensor | None) -> Tensor:
    if x_RXC.device.type == "cpu":
        from model import cpu_kernels

        cpu_kernels.gelu(x_RXC, skip_BXC)
        return x_RXC
    return F.gelu(x_RXC if skip_BXC is None else x_RXC + skip_BXC)


def _to_pixels(logits_RXM: Tensor, keep_RM: Tensor, grid: torch.Size) -> Tensor:
    """Logits (K, 4H, 4W), float32, of which the 16 pixels of a cell lie as two doublings made them."""
    if logits_RXM.device.type == "cpu":
        from model import cpu_kernels

        return cpu_kernels.to_pixels(logits_RXM, keep_RM.nonzero(), grid)
    logits_KX = logits_RXM.transpose(1, 2)[keep_RM].float()
    cells = logits_KX.unflatten(1, (*grid, 2, 2, 2, 2)).permute(0, 1, 3, 5, 2, 4, 6)
    return cells.flatten(1, 3).flatten(2, 4)


def _as_linear(convolution: nn.Module, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Weight and bias that make of a cell its 2 x 2 pixels, pixel by pixel."""
    weight_io22, bias_o = convolution.get_parameter("weight"), convolution.get_parameter("bias")
    return weight_io22.permute(2, 3, 1, 0).flatten(0, 2).to(dtype), bias_o.repeat(4).to(dtype)
