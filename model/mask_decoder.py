"""The mask decoder: predicts mask logits and their IoUs from prompt tokens and an image embedding.

Shapes: N prompts, Z prompts with at least one chosen mask, T prompt tokens, O = 1 + M output tokens (predicted IoU,
masks), M masks per prompt (the single mask first, then the ambiguity masks), K chosen masks, C channels, Y X embedding
grid, L = Y*X image tokens, h w = 4Y 4X mask logits.
Source: Kirillov et al. 2023, Appendix A; `modeling/mask_decoder.py` of segment-anything.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from maskmill.model.config import NetworkConfig
from maskmill.model.embedding import ImageEmbedding
from maskmill.model.layers import MLP, LayerNorm2d
from maskmill.model.transformer import TwoWayTransformer


@dataclass(frozen=True)
class DecodedPrompts:
    """The output of the transformer for N prompts. `MaskDecoder.decode_masks` computes masks of any subset from it."""

    predicted_iou_NM: Tensor
    mask_tokens_NMC: Tensor
    image_tokens_NCYX: Tensor
    # See `ImageEmbedding`. The leading size is 1 if all prompts share an image.
    skips: tuple[Tensor, ...] = ()


class MaskDecoder(nn.Module):
    """Two steps, so that prompts can be rejected by predicted IoU before their masks are upscaled."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.num_masks = config.multimask_outputs + 1
        self.transformer: nn.Module = TwoWayTransformer(config)
        self.iou_token = nn.Embedding(1, dim)
        self.mask_tokens = nn.Embedding(self.num_masks, dim)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(dim, dim // 4, kernel_size=2, stride=2),
            LayerNorm2d(dim // 4),
            nn.GELU(),
            nn.ConvTranspose2d(dim // 4, dim // 8, kernel_size=2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(MLP(dim, dim, dim // 8, depth=3) for _ in range(self.num_masks))
        self.iou_prediction_head = MLP(dim, config.iou_head_width, self.num_masks, config.iou_head_depth)

    def decode_prompts(
        self, embedding: ImageEmbedding, positions_1CYX: Tensor, sparse_NTC: Tensor, dense_NCYX: Tensor
    ) -> DecodedPrompts:
        """Runs the transformer. `embedding` and `dense_NCYX` have leading size N, or 1 if all prompts share them."""
        Y, X = embedding.grid_BCYX.shape[-2:]
        output_tokens_OC = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        output_tokens_NOC = output_tokens_OC.expand(len(sparse_NTC), -1, -1)
        tokens_NTC = torch.cat([output_tokens_NOC, sparse_NTC], dim=1)
        image_NLC = (embedding.grid_BCYX + dense_NCYX).flatten(2).transpose(1, 2)
        positions_1LC = positions_1CYX.flatten(2).transpose(1, 2)
        tokens_NTC, image_NLC = self.transformer(tokens_NTC, image_NLC, positions_1LC)
        return DecodedPrompts(
            predicted_iou_NM=self.iou_prediction_head(tokens_NTC[:, 0]),
            mask_tokens_NMC=tokens_NTC[:, 1 : 1 + self.num_masks],
            image_tokens_NCYX=image_NLC.transpose(1, 2).unflatten(2, (Y, X)),
            skips=embedding.skips,
        )

    def decode_masks(self, decoded: DecodedPrompts, keep_NM: Tensor) -> Tensor:
        """Mask logits (K, h, w) of the masks where the boolean `keep_NM` is true, in row-major order of (N, M).

        `keep_NM` may be on the CPU: its count is then known without synchronising with a GPU.
        """
        rows = keep_NM.any(dim=1).nonzero()[:, 0]
        skips = [skip if len(skip) == 1 else skip[rows] for skip in decoded.skips]
        upscaled_ZChw = self._upscale(decoded.image_tokens_NCYX[rows], skips)
        weights_ZMC = torch.stack(
            [mlp(decoded.mask_tokens_NMC[rows, i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)], dim=1
        )
        logits_ZMhw = torch.einsum("zmc,zchw->zmhw", weights_ZMC.to(upscaled_ZChw.dtype), upscaled_ZChw)
        return logits_ZMhw[keep_NM[rows]]

    def _upscale(self, image_tokens_ZCYX: Tensor, skips: list[Tensor]) -> Tensor:
        if not skips:
            return self.output_upscaling(image_tokens_ZCYX)
        upscale_1, norm, activation_1, upscale_2, activation_2 = self.output_upscaling
        half = activation_1(norm(upscale_1(image_tokens_ZCYX) + skips[0]))
        return activation_2(upscale_2(half) + skips[1])
