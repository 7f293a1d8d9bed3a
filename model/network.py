"""A promptable segmenter of any family, composed of its three parts. It stores no image and no prompt.

Shapes: B images, N prompts, P points per prompt, T prompt tokens, M masks per prompt (the single mask first), K chosen
masks, C channels, Y X embedding grid, S input side, h w low-resolution logits. Coordinates are input pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskmill.model.config import NetworkConfig
from maskmill.model.embedding import ImageEmbedding
from maskmill.model.families import FAMILIES
from maskmill.model.mask_decoder import DecodedPrompts
from maskmill.model.prompts import AMBIGUITY_MASKS, SINGLE_MASK, best_ambiguity_mask, choose, is_stable


class Network(nn.Module):
    """Image encoder, prompt encoder and mask decoder of one variant.

    Everything that differs between families is in `config` and in its entry of FAMILIES.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        family = FAMILIES[config.family]
        self.image_encoder = family.build_encoder(config)
        self.prompt_encoder = family.build_prompt_encoder(config)
        self.mask_decoder = family.build_decoder(config)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.mask_decoder.iou_token.weight.device

    def screen(self) -> Network | None:
        """A faster network for the same embeddings with approximate results, or None. See `filters.screening`."""
        return None

    def encode_images(self, images_B3SS: Tensor) -> ImageEmbedding:
        """The embeddings of images from `preprocess`."""
        return self.image_encoder(images_B3SS)

    def decode_prompts(
        self,
        embedding: ImageEmbedding,
        points_NP2: Tensor | None = None,
        labels_NP: Tensor | None = None,
        boxes_N4: Tensor | None = None,
        masks_N1hw: Tensor | None = None,
    ) -> DecodedPrompts:
        """Predicted IoUs, and the input of `decode_masks`, for any combination of prompts.

        `embedding` holds one embedding per prompt, or one that all prompts share.
        """
        sparse_NTC, dense_NCYX = self.prompt_encoder(points_NP2, labels_NP, boxes_N4, masks_N1hw)
        return self.mask_decoder.decode_prompts(embedding, self.grid_positions(), sparse_NTC, dense_NCYX)

    def candidates(self, predicted_iou_NM: Tensor) -> Tensor:
        """A boolean (N, M): the masks that automatic mask generation takes from each prompt."""
        if self.config.best_candidate_only:
            return F.one_hot(best_ambiguity_mask(predicted_iou_NM), predicted_iou_NM.shape[1]).bool()
        return choose(AMBIGUITY_MASKS, predicted_iou_NM)

    def grid_positions(self) -> Tensor:
        """Positional encoding of the embedding cells, (1, C, Y, X)."""
        return self.prompt_encoder.grid_positions()

    def decode_points(self, embedding: ImageEmbedding, points_N2: Tensor) -> DecodedPrompts:
        """`decode_prompts` for N prompts on one image, each a single foreground point."""
        points_N12 = points_N2[:, None]
        labels_N1 = torch.ones(points_N12.shape[:2], dtype=torch.int64, device=points_N2.device)
        return self.decode_prompts(embedding, points_N12, labels_N1)

    def decode_masks(self, decoded: DecodedPrompts, keep_NM: Tensor) -> Tensor:
        """Mask logits (K, h, w), 4 x 4 per embedding cell, of the masks for which `keep_NM` is true.

        `keep_NM` may be on the CPU.
        """
        return self.mask_decoder.decode_masks(decoded, keep_NM)

    def decode_single_masks(self, decoded: DecodedPrompts, keep_N: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (K, h, w) and predicted IoUs (K,) of one mask per prompt, of the prompts for which `keep_N` is true.

        In some families the best ambiguity mask replaces an unstable single mask.
        """
        iou_KM = decoded.predicted_iou_NM[keep_N]
        keep_NM = choose(SINGLE_MASK, decoded.predicted_iou_NM) & keep_N[:, None]
        if not self.config.dynamic_multimask:
            return self.decode_masks(decoded, keep_NM), iou_KM[:, SINGLE_MASK]
        best_K1 = best_ambiguity_mask(iou_KM)[:, None]
        keep_NM[keep_N] = keep_NM[keep_N].scatter(1, best_K1, value=True)
        single_Khw, best_Khw = self.decode_masks(decoded, keep_NM).unflatten(0, (-1, 2)).unbind(dim=1)
        is_stable_K = is_stable(single_Khw)
        return (
            torch.where(is_stable_K[:, None, None], single_Khw, best_Khw),
            torch.where(is_stable_K, iou_KM[:, SINGLE_MASK], iou_KM.gather(1, best_K1)[:, 0]),
        )
