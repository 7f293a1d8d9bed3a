"""The mask decoder for inference: the same function, with the transformer and the upscaling of this folder.

Shapes: B images (1 if all prompts share one, else N), N prompts, Z prompts with at least one chosen mask, M masks per
prompt, K chosen masks, C channels, Y X embedding grid, L = Y*X image tokens.
Source: `modeling/mask_decoder.py` of segment-anything, through `model/mask_decoder.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from maskmill.model.config import NetworkConfig
from maskmill.model.embedding import ImageEmbedding
from maskmill.model.inference import low_rank, token_side
from maskmill.model.inference.low_rank import FactoredPrompts, LowRankTransformer
from maskmill.model.inference.token_side import TokenSideTransformer
from maskmill.model.inference.upscaling import CellsLast, ChannelsLast, ChosenMasks
from maskmill.model.layers import require_same_classes
from maskmill.model.mask_decoder import DecodedPrompts, MaskDecoder
from maskmill.model.transformer import TwoWayTransformer


@dataclass(frozen=True)
class _Prepared:
    """Features of an embedding that all prompts without a mask share."""

    image: token_side.PreparedImage | low_rank.PreparedImage
    skips: tuple[Tensor, ...]  # in the layout of the upscaling


class FastMaskDecoder(MaskDecoder):
    """A `MaskDecoder` for inference. Changes to the weights of the given decoder after construction are ignored.

    Image tokens are computed in `dtype`, prompt tokens and predicted IoUs in float32. The shared features of an
    embedding are cached until the embedding is garbage-collected. Raises TypeError if a submodule has another class
    than in `MaskDecoder`.
    """

    # From this size of an embedding, prompts on one image are decoded in factored form (`low_rank.py`), in float32 on a
    # CPU. In smaller embeddings its many calls cost more than the products that it saves.
    LEAST_FACTORED_CELLS = 512
    # On a CPU, the masks of this many prompts are decoded in one call.
    CPU_BLOCK = 64

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
        layers = self.output_upscaling
        if next(decoder.parameters()).device.type == "cpu":
            self._upscaling = CellsLast(layers, dtype)
        else:
            self._upscaling = ChannelsLast(layers, dtype)
        self._prepared: WeakKeyDictionary[ImageEmbedding, _Prepared] = WeakKeyDictionary()

    def decode_prompts(
        self, embedding: ImageEmbedding, positions_1CYX: Tensor, sparse_NTC: Tensor, dense_NCYX: Tensor
    ) -> DecodedPrompts:
        """See `MaskDecoder`. Only `decode_masks` of this object accepts the result: its skips have their own layout."""
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
            assert isinstance(self._upscaling, CellsLast)
            return _Prepared(self._low_rank.prepare(image_BLC, positions_1LC, self._upscaling.weight_1), skips)
        return _Prepared(self._token_side.prepare(image_BLC, positions_1LC), skips)

    def _prepare_skips(self, embedding: ImageEmbedding) -> tuple[Tensor, ...]:
        return tuple(self._upscaling.arrange_skip(skip, steps) for steps, skip in enumerate(embedding.skips, start=1))

    def decode_masks(self, decoded: DecodedPrompts, keep_NM: Tensor) -> Tensor:
        """See `MaskDecoder`. Logits are float32."""
        rows = keep_NM.any(dim=1).nonzero()[:, 0]
        is_cpu = decoded.mask_tokens_NMC.device.type == "cpu"
        blocks = rows.split(self.CPU_BLOCK if is_cpu else max(1, len(rows)))
        return torch.cat([self._decode_block(decoded, some, keep_NM[some]) for some in blocks])

    def _decode_block(self, decoded: DecodedPrompts, rows_Z: Tensor, keep_ZM: Tensor) -> Tensor:
        """The logits (K, h, w) of the chosen masks of some prompts."""
        device = decoded.mask_tokens_NMC.device
        chosen_K2 = keep_ZM.nonzero().to(device, non_blocking=True)
        rows_Z = rows_Z.to(device, non_blocking=True)
        return self._logits_of(decoded, rows_Z, decoded.mask_tokens_NMC[rows_Z], chosen_K2)

    def _logits_of(self, decoded: DecodedPrompts, rows_Z: Tensor, mask_tokens_ZMC: Tensor, chosen_K2: Tensor) -> Tensor:
        weights_ZMC = self.mask_weights(mask_tokens_ZMC)
        return self._upscaling(ChosenMasks(decoded, rows_Z, weights_ZMC, chosen_K2), decoded.skips)[0]
