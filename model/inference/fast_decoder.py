"""The mask decoder for inference: the same function, with image tokens stored channels-last throughout.

The published decoder upscales with transposed convolutions, channels first. Their 2 x 2 kernels do not overlap, so each
embedding cell determines its own pixels, and a convolution is a matrix multiplication of the channels of each cell. The
pixels stay grouped by cell; only the logits are arranged by row and column.

Shapes: B images (1 if all prompts share one, else N), N prompts, Z prompts with at least one chosen mask, M masks per
prompt, K chosen masks, C channels, Y X embedding grid, L = Y*X image tokens, E pixels, grouped by cell.
Source: `modeling/mask_decoder.py` of segment-anything, through `model/mask_decoder.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from maskmill.model.config import NetworkConfig
from maskmill.model.embedding import ImageEmbedding
from maskmill.model.inference import fused_ops, low_rank, token_side
from maskmill.model.inference.low_rank import FactoredTokens, LowRankTransformer
from maskmill.model.inference.token_side import TokenSideTransformer
from maskmill.model.layers import fast_bmm, fast_linear, require_same_classes
from maskmill.model.mask_decoder import DecodedPrompts, MaskDecoder
from maskmill.model.transformer import TwoWayTransformer

# The largest tensor of the prompts that a CPU upscales together: a fraction of its caches.
CPU_BLOCK_BYTES = 8 * 2**20


@dataclass(frozen=True, kw_only=True)
class FactoredPrompts(DecodedPrompts):
    """Decoded prompts with image tokens in factored form. `image_tokens_NCYX` is empty except for its grid."""

    factored: FactoredTokens


@dataclass(frozen=True)
class _Prepared:
    """Features of an embedding that all prompts without a mask share."""

    image: token_side.PreparedImage | low_rank.PreparedImage
    skips: tuple[Tensor, ...]  # (B, 4L, C/4) and (B, 16L, C/8), pixels grouped by cell


class FastMaskDecoder(MaskDecoder):
    """A `MaskDecoder` for inference. Changes to the weights of the given decoder after construction are ignored.

    Image tokens are computed in `dtype`, prompt tokens and predicted IoUs in float32. The shared features of an
    embedding are cached until the embedding is garbage-collected. Raises TypeError if a submodule has another class
    than in `MaskDecoder`.
    """

    # From this size of an embedding, prompts on one image are decoded in factored form (`low_rank.py`), in float32 on a
    # CPU. In smaller embeddings its many calls cost more than the products that it saves.
    LEAST_FACTORED_CELLS = 2048

    def __init__(self, config: NetworkConfig, decoder: MaskDecoder, dtype: torch.dtype) -> None:
        with torch.device("meta"):
            super().__init__(config)
        self.load_state_dict(decoder.state_dict(), assign=True)
        require_same_classes(decoder, self)
        self._dtype = dtype
        assert isinstance(self.transformer, TwoWayTransformer)
        self._token_side = TokenSideTransformer(self.transformer, dtype)
        self._low_rank = LowRankTransformer(self._token_side)
        self._factors = dtype == torch.float32 and config.grid_size**2 >= self.LEAST_FACTORED_CELLS
        upscale_1, _, _, upscale_2, _ = self.output_upscaling
        self._upscale_1, self._upscale_2 = (_as_linear(layer, dtype) for layer in (upscale_1, upscale_2))
        bytes_per_prompt = 4 * config.mask_size**2 * config.embed_dim // 8
        self._cpu_block = max(1, CPU_BLOCK_BYTES // bytes_per_prompt)
        self._prepared: WeakKeyDictionary[ImageEmbedding, _Prepared] = WeakKeyDictionary()

    def decode_prompts(
        self, embedding: ImageEmbedding, positions_1CYX: Tensor, sparse_NTC: Tensor, dense_NCYX: Tensor
    ) -> DecodedPrompts:
        """See `MaskDecoder`. Only `decode_masks` of this class accepts the result: its skips are channels-last."""
        without_mask = dense_NCYX.shape[-2:] == (1, 1)  # the same "no mask" embedding for all cells
        prepared = self._prepared.get(embedding) if without_mask else None
        if prepared is None:
            prepared = self._prepare(embedding, positions_1CYX, dense_NCYX)
            if without_mask:
                self._prepared[embedding] = prepared
        tokens_NTC, (Y, X) = self.prepend_output_tokens(sparse_NTC), embedding.grid_BCYX.shape[-2:]
        if isinstance(prepared.image, low_rank.PreparedImage):
            tokens_NTC, factored = self._low_rank(tokens_NTC, prepared.image)
            no_tokens = tokens_NTC.new_empty(len(tokens_NTC), 0, Y, X)
            decoded = self.read_output_tokens(tokens_NTC, no_tokens, prepared.skips)
            return FactoredPrompts(**vars(decoded), factored=factored)
        tokens_NTC, image_NLC = self._token_side(tokens_NTC, prepared.image)
        return self.read_output_tokens(tokens_NTC, image_NLC.transpose(1, 2).unflatten(2, (Y, X)), prepared.skips)

    def _prepare(self, embedding: ImageEmbedding, positions_1CYX: Tensor, dense_NCYX: Tensor) -> _Prepared:
        image_BLC = (embedding.grid_BCYX + dense_NCYX).flatten(2).transpose(1, 2)
        positions_1LC = positions_1CYX.flatten(2).transpose(1, 2)
        skips = self._prepare_skips(embedding)
        is_shared = len(image_BLC) == 1 and dense_NCYX.shape[-2:] == (1, 1)
        if self._factors and is_shared and image_BLC.device.type == "cpu":
            return _Prepared(self._low_rank.prepare(image_BLC, positions_1LC, self._upscale_1[0]), skips)
        return _Prepared(self._token_side.prepare(image_BLC, positions_1LC), skips)

    def _prepare_skips(self, embedding: ImageEmbedding) -> tuple[Tensor, ...]:
        Y, X = embedding.grid_BCYX.shape[-2:]
        skips = []
        for skip, steps in zip(embedding.skips, (1, 2), strict=False):
            twos = [2] * steps  # each upsampling step splits a cell in two along both axes
            cells = skip.unflatten(3, (X, *twos)).unflatten(2, (Y, *twos))
            # From (B, C, Y, y of each step, X, x of each step) to (B, Y, X, y and x of each step, C).
            order = [0, 2, 3 + steps, *(axis + i for i in range(steps) for axis in (3, 4 + steps)), 1]
            skips.append(cells.permute(order).flatten(1, -2).to(self._dtype).contiguous())
        return tuple(skips)

    def decode_masks(self, decoded: DecodedPrompts, keep_NM: Tensor) -> Tensor:
        """See `MaskDecoder`. Logits are float32."""
        rows = keep_NM.any(dim=1).nonzero()[:, 0]
        block = self._cpu_block if decoded.mask_tokens_NMC.device.type == "cpu" else max(1, len(rows))
        blocks = [self._decode_block(decoded, some, keep_NM[some]) for some in rows.split(block)]
        return torch.cat(blocks)

    def _decode_block(self, decoded: DecodedPrompts, rows_Z: Tensor, keep_ZM: Tensor) -> Tensor:
        """The logits (K, h, w) of the chosen masks of some prompts."""
        device = decoded.mask_tokens_NMC.device
        chosen_K2 = keep_ZM.nonzero().to(device, non_blocking=True)
        rows_Z = rows_Z.to(device, non_blocking=True)
        skips = [skip if len(skip) == 1 else skip[rows_Z] for skip in decoded.skips]
        half_skip, full_skip = self._upscaling_skips(skips) or (None, None)
        if isinstance(decoded, FactoredPrompts):
            half_ZLE = decoded.factored.project(rows_Z, *self._upscale_1)
        else:
            half_ZLE = fast_linear(decoded.image_tokens_NCYX.flatten(2).transpose(1, 2)[rows_Z], *self._upscale_1)
        half_ZEC = half_ZLE.unflatten(2, (4, -1)).flatten(1, 2)
        norm = self.output_upscaling[1]
        assert isinstance(norm, nn.LayerNorm | nn.GroupNorm)
        half_ZEC = fused_ops.norm_and_gelu(half_ZEC, half_skip, norm)
        full_ZEC = fast_linear(half_ZEC, *self._upscale_2).unflatten(2, (4, -1)).flatten(1, 2)
        full_ZEC = fused_ops.gelu(full_ZEC, full_skip)
        mask_tokens_ZMC = decoded.mask_tokens_NMC[rows_Z]
        logits_ZEM = fast_bmm(full_ZEC, self.mask_weights(mask_tokens_ZMC).mT.to(self._dtype))
        logits_Khw = fused_ops.to_pixels(logits_ZEM, chosen_K2, decoded.image_tokens_NCYX.shape[-2:])
        return self._add_details(logits_Khw, full_ZEC, mask_tokens_ZMC, skips, prompts_K=chosen_K2[:, 0])

    def _upscaling_skips(self, skips: Sequence[Tensor]) -> Sequence[Tensor]:
        """The features to add in each step of the upscaling."""
        return skips

    def _add_details(
        self, logits_Khw: Tensor, full_ZEC: Tensor, mask_tokens_ZMC: Tensor, skips: Sequence[Tensor], prompts_K: Tensor
    ) -> Tensor:
        """Adds what a family adds to the logits. `prompts_K` is the index in Z of each mask."""
        return logits_Khw


def _as_linear(convolution: nn.Module, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Weight and bias of a linear layer that computes the 2 x 2 pixels of a cell: i input, o output channels."""
    weight_io22, bias_o = convolution.get_parameter("weight"), convolution.get_parameter("bias")
    return weight_io22.permute(2, 3, 1, 0).flatten(0, 2).to(dtype), bias_o.repeat(4).to(dtype)
