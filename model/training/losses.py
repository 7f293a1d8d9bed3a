"""What the trainer minimises, as pure functions of logits and answers.

Shapes: N prompts, M masks per prompt, J answers per prompt, h w mask side; B images, O offsets, X pairs of pixels.
Answers are soft masks in 0..1.
Source: Kirillov et al. 2023, Appendix A, with binary cross entropy in place of the focal loss, which is too
weak to start learning from nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import torch
import torch.nn.functional as F
from torch import Tensor

from model.training.prompts import OFFSETS, offset_windows

BCE_WEIGHT = 2.0


@dataclass(frozen=True)
class MaskCosts:
    """Every mask of a prompt against every answer of it."""

    loss_NMJ: Tensor
    iou_NMJ: Tensor


@torch.autocast("cpu", enabled=False)
@torch.autocast("cuda", enabled=False)
def mask_costs(logits_NMhw: Tensor, answers_NJhw: Tensor) -> MaskCosts:
    """2 * BCE + dice, and the true IoU of the binary masks (without gradient), for all pairs.

    In float32 whatever the caller computes in: sums over a mask's pixels need it.
    """
    logits_NML, answers_NJL = logits_NMhw.flatten(2).float(), answers_NJhw.flatten(2).float()
    answers_NLJ = answers_NJL.transpose(1, 2)
    pixels = logits_NML.shape[-1]
    # BCE with logits is softplus(logit) - logit * answer; both sums over pixels are cheap for all pairs at once.
    bce_NMJ = (F.softplus(logits_NML).sum(-1, keepdim=True) - logits_NML @ answers_NLJ) / pixels
    chance_NML = logits_NML.sigmoid()
    overlap_NMJ = chance_NML @ answers_NLJ
    sizes_NMJ = chance_NML.sum(-1)[:, :, None] + answers_NJL.sum(-1)[:, None, :]
    dice_NMJ = 1 - (2 * overlap_NMJ + 1) / (sizes_NMJ + 1)
    return MaskCosts(BCE_WEIGHT * bce_NMJ + dice_NMJ, _true_iou(logits_NML.detach(), answers_NJL))


def _true_iou(logits_NML: Tensor, answers_NJL: Tensor) -> Tensor:
    mask_NML, answer_NJL = (logits_NML > 0).float(), (answers_NJL > 0.5).float()
    overlap_NMJ = mask_NML @ answer_NJL.transpose(1, 2)
    union_NMJ = mask_NML.sum(-1)[:, :, None] + answer_NJL.sum(-1)[:, None, :] - overlap_NMJ
    return overlap_NMJ / union_NMJ.clamp(min=1)


def matched_loss(loss_NMJ: Tensor, valid_NJ: Tensor) -> Tensor:
    """Mean loss (N) of the cheapest way to give each valid answer a mask of its own. Needs J <= M."""
    masks, answers = loss_NMJ.shape[1:]
    loss_NMJ = loss_NMJ * valid_NJ[:, None, :]
    assignments = torch.tensor(list(permutations(range(masks), answers)), device=loss_NMJ.device)
    total_NK = loss_NMJ[:, assignments, torch.arange(answers, device=loss_NMJ.device)].sum(-1)
    return total_NK.min(dim=1).values / valid_NJ.sum(1)


def best_iou(iou_NMJ: Tensor, valid_NJ: Tensor) -> Tensor:
    """(N, M) IoU of each mask with the valid answer that it fits best: what the IoU head should say."""
    return (iou_NMJ * valid_NJ[:, None, :]).amax(dim=2)


def neighbour_loss(features_BChw: Tensor, same_BOhw: Tensor, scale_2: Tensor) -> Tensor:
    """BCE of "same segment" for each pixel and its neighbours, from the cosine of their features, scaled and shifted.

    Pairs that are alike and pairs that are not weigh the same, however few the latter are.
    """
    features_BChw = F.normalize(features_BChw.float(), dim=1)
    h, w = features_BChw.shape[-2:]
    logits, answers = [], []
    for offset, same_Bhw in zip(OFFSETS, same_BOhw.unbind(1), strict=True):
        here, there = offset_windows(h, w, *offset)
        logits.append((features_BChw[:, :, *here] * features_BChw[:, :, *there]).sum(1).flatten())
        answers.append(same_Bhw[:, *here].flatten())
    logits_X, answers_X = scale_2[0] * torch.cat(logits) + scale_2[1], torch.cat(answers)
    alike_X, apart_X = answers_X.nan_to_num(0), 1 - answers_X.nan_to_num(1)
    of_alike = (F.softplus(-logits_X) * alike_X).sum() / alike_X.sum().clamp(min=1)
    of_apart = (F.softplus(logits_X) * apart_X).sum() / apart_X.sum().clamp(min=1)
    return of_alike + of_apart


def affinity_loss(similarity_NHW: Tensor, answers_Nhw: Tensor) -> Tensor:
    """BCE + dice of "same segment as the click" for each embedding cell: the short way from answers to encoder."""
    answers_NHW = F.interpolate(answers_Nhw[:, None], similarity_NHW.shape[-2:], mode="area")[:, 0]
    bce = F.binary_cross_entropy_with_logits(similarity_NHW, answers_NHW)
    chance_NHW = similarity_NHW.sigmoid()
    overlap_N = (chance_NHW * answers_NHW).sum((1, 2))
    sizes_N = chance_NHW.sum((1, 2)) + answers_NHW.sum((1, 2))
    return bce + (1 - (2 * overlap_N + 1) / (sizes_N + 1)).mean()
