"""Predicts the masks at point prompts: three ambiguity masks or one mask per point, and optionally refines each once.

Shapes: N points (one prompt each), R masks per point, M outputs of the mask decoder per prompt, K chosen masks, h w
low-resolution logits.
Source: `SAM2AutomaticMaskGenerator` of sam2.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from maskmill.model.embedding import ImageEmbedding
from maskmill.model.mask_decoder import DecodedPrompts
from maskmill.model.network import Network
from maskmill.model.prompts import AMBIGUITY_MASKS, among_all
from maskmill.pipeline.config import GeneratorConfig


class PointMasks(NamedTuple):
    """The R masks at each of N points. `logits_Khw` holds those for which `keep_NR`, on the CPU, is true."""

    predicted_iou_NR: Tensor
    keep_NR: Tensor
    logits_Khw: Tensor


def predict_masks(
    network: Network, config: GeneratorConfig, embedding: ImageEmbedding, points_N2: Tensor, iou_threshold: float
) -> PointMasks:
    """The masks with a predicted IoU above the threshold; all masks if it is 0. Points are in input pixels."""
    decoded = network.decode_points(embedding, points_N2)
    predict = _ambiguity_masks if config.multimask_output else _single_masks
    if not config.use_m2m:
        return predict(network, decoded, iou_threshold)
    iou_NR, keep_NR, logits_Khw = predict(network, decoded, 0)
    points_K2 = points_N2[keep_NR.nonzero()[:, 0].to(points_N2.device)]
    # In batches as large as those of points: a prompt with a mask needs as much memory as a point.
    batches = zip(points_K2.split(len(points_N2)), logits_Khw.split(len(points_N2)), strict=True)
    refined = [_refine(network, embedding, points, logits, iou_threshold) for points, logits in batches]
    iou_K1, keep_K1, logits_Khw = (torch.cat(parts) for parts in zip(*refined, strict=True))
    iou_NR = iou_NR.masked_scatter(keep_NR.to(iou_NR.device), iou_K1)
    return PointMasks(iou_NR, keep_NR.masked_scatter(keep_NR, keep_K1), logits_Khw)


def _refine(
    network: Network, embedding: ImageEmbedding, points_K2: Tensor, logits_Khw: Tensor, iou_threshold: float
) -> PointMasks:
    """One mask for each point and the mask that was predicted there."""
    limit = network.config.logit_limit
    points_K12 = points_K2[:, None]
    labels_K1 = torch.ones(points_K12.shape[:2], dtype=torch.int64, device=points_K2.device)
    decoded = network.decode_prompts(
        embedding, points_K12, labels_K1, masks_N1hw=logits_Khw[:, None].clamp(-limit, limit)
    )
    return _single_masks(network, decoded, iou_threshold)


def _ambiguity_masks(network: Network, decoded: DecodedPrompts, iou_threshold: float) -> PointMasks:
    iou_NR = decoded.predicted_iou_NM[:, AMBIGUITY_MASKS]
    keep_NR = network.candidates(decoded.predicted_iou_NM)[:, AMBIGUITY_MASKS] & _pass(iou_NR, iou_threshold)
    keep_NR = keep_NR.cpu()  # synchronises with a GPU: the host needs the number K
    return PointMasks(iou_NR, keep_NR, network.decode_masks(decoded, among_all(keep_NR)))


def _single_masks(network: Network, decoded: DecodedPrompts, iou_threshold: float) -> PointMasks:
    # Which output answers the prompt is known only after its masks are computed, see `Network.decode_single_masks`.
    iou_N = decoded.predicted_iou_NM.amax(dim=1)
    may_pass_N = _pass(iou_N, iou_threshold)
    logits_Khw, iou_K = network.decode_single_masks(decoded, may_pass_N)
    iou_N = iou_N.masked_scatter(may_pass_N, iou_K)
    passes_K = _pass(iou_K, iou_threshold)
    keep_N = may_pass_N.masked_scatter(may_pass_N, passes_K)
    return PointMasks(iou_N[:, None], keep_N[:, None].cpu(), logits_Khw[passes_K])


def _pass(predicted_iou: Tensor, threshold: float) -> Tensor:
    return predicted_iou > threshold if threshold > 0 else torch.ones_like(predicted_iou, dtype=torch.bool)
