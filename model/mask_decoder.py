"""The mask decoder: predicts mask logits and their IoUs from prompt tokens and an image embedding.

The transformer gets output tokens before the prompt tokens: one for the object score in some families, one for the
predicted IoUs, and one per mask.

Shapes: N prompts, Z prompts with at least one chosen mask, T tokens, M masks per prompt (the single mask first, then
the ambiguity masks), K chosen masks, C channels, Y X embedding grid, L = Y*X image tokens, h w = 4Y 4X mask logits.
Source: Kirillov et al. 2023, Appendix A; `modeling/mask_decoder.py` of segment-anything and of sam2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskmill.model.config import NetworkConfig
from maskmill.model.embedding import ImageEmbedding
from maskmill.model.layers import MLP, LayerNorm2d
from maskmill.model.transformer import TwoWayTransformer


@dataclass(frozen=True)
class DecodedPrompts:
    """The output of the transformer for N prompts. `MaskDecoder.decode_masks` computes masks of any subset from it."""

    predicted_iou_NM: Tensor
    mask_tokens_NMC: Tensor  # a family's further output tokens follow those of the masks
    image_tokens_NCYX: Tensor
    # See `ImageEmbedding`. The leading size is 1 if all prompts share an image.
    skips: tuple[Tensor, ...] = ()
    # Above 0 if the image contains the object, in families that predict it.
    object_score_N: Tensor | None = None


class MaskDecoder(nn.Module):
    """Two steps, so that prompts can be rejected by predicted IoU before their masks are upscaled."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.num_masks = config.multimask_outputs + 1
        self.transformer: nn.Module = TwoWayTransformer(config)
        self.sigmoid_iou = config.sigmoid_iou
        self.object_score = config.object_score
        if config.object_score:
            self.obj_score_token = nn.Embedding(1, dim)
            self.pred_obj_score_head = MLP(dim, dim, 1, depth=3)
        self.iou_token = nn.Embedding(1, dim)
        self.mask_tokens = nn.Embedding(self.num_masks, dim)
        activation = getattr(F, config.decoder_activation)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(dim, dim // 4, kernel_size=2, stride=2),
            # One group is the layer norm of the whole image.
            LayerNorm2d(dim // 4) if config.upscaling_norm == "cell" else nn.GroupNorm(1, dim // 4),
            nn.GELU(),
            nn.ConvTranspose2d(dim // 4, dim // 8, kernel_size=2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(
            MLP(dim, dim, dim // 8, depth=3, activation=activation) for _ in range(self.num_masks)
        )
        self.iou_prediction_head = MLP(dim, config.iou_head_width, self.num_masks, config.iou_head_depth, activation)

    def decode_prompts(
        self, embedding: ImageEmbedding, positions_1CYX: Tensor, sparse_NTC: Tensor, dense_NCYX: Tensor
    ) -> DecodedPrompts:
        """Runs the transformer. `embedding` and `dense_NCYX` have leading size N, or 1 if all prompts share them."""
        Y, X = embedding.grid_BCYX.shape[-2:]
        tokens_NTC = self.prepend_output_tokens(sparse_NTC)
        image_NLC = (embedding.grid_BCYX + dense_NCYX).flatten(2).transpose(1, 2)
        positions_1LC = positions_1CYX.flatten(2).transpose(1, 2)
        tokens_NTC, image_NLC = self.transformer(tokens_NTC, image_NLC, positions_1LC)
        return self.read_output_tokens(tokens_NTC, image_NLC.transpose(1, 2).unflatten(2, (Y, X)), embedding.skips)

    def prepend_output_tokens(self, sparse_NTC: Tensor) -> Tensor:
        """The input tokens (N, T, C) of the transformer: output tokens, then prompt tokens."""
        output_tokens_OC = torch.cat(self.output_tokens())
        return torch.cat([output_tokens_OC.expand(len(sparse_NTC), -1, -1), sparse_NTC], dim=1)

    def output_tokens(self) -> list[Tensor]:
        """The learned tokens, each (O, C)."""
        object_token = [self.obj_score_token.weight] if self.object_score else []
        return [*object_token, self.iou_token.weight, self.mask_tokens.weight]

    def read_output_tokens(
        self, tokens_NTC: Tensor, image_tokens_NCYX: Tensor, skips: tuple[Tensor, ...]
    ) -> DecodedPrompts:
        """Applies the heads that predict scores to the output of the transformer."""
        object_score_N = None
        if self.object_score:
            object_score_N = self.pred_obj_score_head(tokens_NTC[:, 0])[:, 0]
            tokens_NTC = tokens_NTC[:, 1:]
        predicted_iou_NM = self.iou_prediction_head(tokens_NTC[:, 0])
        return DecodedPrompts(
            predicted_iou_NM=predicted_iou_NM.sigmoid() if self.sigmoid_iou else predicted_iou_NM,
            mask_tokens_NMC=tokens_NTC[:, 1 : 1 + self.num_masks],
            image_tokens_NCYX=image_tokens_NCYX,
            skips=skips,
            object_score_N=object_score_N,
        )

    def decode_masks(self, decoded: DecodedPrompts, keep_NM: Tensor) -> Tensor:
        """Mask logits (K, h, w) of the masks where the boolean `keep_NM` is true, in row-major order of (N, M).

        `keep_NM` may be on the CPU: its count is then known without synchronising with a GPU.
        """
        rows = keep_NM.any(dim=1).nonzero()[:, 0]
        skips = [skip if len(skip) == 1 else skip[rows] for skip in decoded.skips]
        upscaled_ZChw = self._upscale(decoded.image_tokens_NCYX[rows], skips)
        logits_ZMhw = self._logits(upscaled_ZChw, decoded.mask_tokens_NMC[rows], skips)
        return logits_ZMhw[keep_NM[rows]]

    def mask_weights(self, mask_tokens_ZMC: Tensor) -> Tensor:
        """The weights (Z, M, C) that each mask gives to the channels of the upscaled image."""
        return torch.stack([mlp(mask_tokens_ZMC[:, i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)], dim=1)

    def _logits(self, upscaled_ZChw: Tensor, mask_tokens_ZMC: Tensor, skips: Sequence[Tensor]) -> Tensor:
        """The logits (Z, M, h, w) of all masks."""
        weights_ZMC = self.mask_weights(mask_tokens_ZMC)
        return torch.einsum("zmc,zchw->zmhw", weights_ZMC.to(upscaled_ZChw.dtype), upscaled_ZChw)

    def _upscale(self, image_tokens_ZCYX: Tensor, skips: Sequence[Tensor]) -> Tensor:
        if not skips:
            return self.output_upscaling(image_tokens_ZCYX)
        upscale_1, norm, activation_1, upscale_2, activation_2 = self.output_upscaling
        half = activation_1(norm(upscale_1(image_tokens_ZCYX) + skips[0]))
        return activation_2(upscale_2(half) + skips[1])
