"""Loss functions for training, as pure functions of logits and ground-truth masks.

Shapes: N prompts, M masks per prompt, J answers per prompt, h w mask side; B images, A label maps of s s pixels,
O offsets, H W embedding grid, L = H W of its cells, X pairs. Answers are ground-truth masks with soft values in 0..1;
label 0 is unknown.
Source: Kirillov et al. 2023, Appendix A. Binary cross entropy replaces the focal loss: its gradients are too small
for training from random weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import permutations

import torch
import torch.nn.functional as F
from torch import Tensor

# (dy, dx) from a logit pixel to its neighbours, in logit pixels. Distance 1 reaches across an edge, distance 5 across a
# small object.
OFFSETS = tuple((d * y, d * x) for d in (1, 5) for y, x in ((0, 1), (1, 0), (1, 1), (1, -1)))

BCE_WEIGHT = 2.0
_BCE_AREAS = 8


@dataclass(frozen=True)
class MaskCosts:
    """Loss and IoU of each predicted mask of a prompt with each answer of the same prompt."""

    loss_NMJ: Tensor
    iou_NMJ: Tensor


@torch.autocast("cpu", enabled=False)
@torch.autocast("cuda", enabled=False)
def mask_costs(logits_NMhw: Tensor, answers_NJhw: Tensor, weights_Nhw: Tensor | None = None) -> MaskCosts:
    """Computes the loss, 2 * BCE + dice, and the IoU of the binary masks (without gradient) for all mask-answer pairs.

    `weights_Nhw` weights the pixels of BCE, dice and IoU. It must be 1 inside the answers. Default: 1 everywhere.

    BCE is summed over pixels and divided by eight times the area of the answer, clamped between 1/64 of the pixels and
    all of them. A wrong pixel thus costs more in a small segment, as in IoU. The computation is in float32 even under
    autocast, because sums over many pixels are too inaccurate in lower precision.
    """
    logits_NML, answers_NJL = logits_NMhw.flatten(2).float(), answers_NJhw.flatten(2).float()
    answers_NLJ = answers_NJL.transpose(1, 2)
    pixels = logits_NML.shape[-1]
    area_NJ = answers_NJL.sum(-1)
    weighed_NJ = (_BCE_AREAS * area_NJ).clamp(pixels / 64, pixels)
    # BCE with logits is softplus(logit) - logit * answer. The sum of the second term for all pairs is a matrix product.
    costs_NML, chance_NML, mask_NML = F.softplus(logits_NML), logits_NML.sigmoid(), (logits_NML.detach() > 0).float()
    if weights_Nhw is not None:
        weights_N1L = weights_Nhw.flatten(1)[:, None]
        costs_NML, chance_NML, mask_NML = (x_NML * weights_N1L for x_NML in (costs_NML, chance_NML, mask_NML))
    bce_NMJ = (costs_NML.sum(-1, keepdim=True) - logits_NML @ answers_NLJ) / weighed_NJ[:, None, :]
    overlap_NMJ = chance_NML @ answers_NLJ
    sizes_NMJ = chance_NML.sum(-1)[:, :, None] + area_NJ[:, None, :]
    dice_NMJ = 1 - (2 * overlap_NMJ + 1) / (sizes_NMJ + 1)
    return MaskCosts(BCE_WEIGHT * bce_NMJ + dice_NMJ, _true_iou(mask_NML, answers_NJL))


def _true_iou(mask_NML: Tensor, answers_NJL: Tensor) -> Tensor:
    answer_NJL = (answers_NJL > 0.5).float()
    overlap_NMJ = mask_NML @ answer_NJL.transpose(1, 2)
    union_NMJ = mask_NML.sum(-1)[:, :, None] + answer_NJL.sum(-1)[:, None, :] - overlap_NMJ
    return overlap_NMJ / union_NMJ.clamp(min=1)


def matched_loss(loss_NMJ: Tensor, valid_NJ: Tensor) -> Tensor:
    """Assigns a different mask to each valid answer with the lowest total loss; returns the mean loss (N). J <= M."""
    masks, answers = loss_NMJ.shape[1:]
    loss_NMJ = loss_NMJ * valid_NJ[:, None, :]
    assignments = torch.tensor(list(permutations(range(masks), answers)), device=loss_NMJ.device)
    total_NK = loss_NMJ[:, assignments, torch.arange(answers, device=loss_NMJ.device)].sum(-1)
    return total_NK.min(dim=1).values / valid_NJ.sum(1)


def best_iou(iou_NMJ: Tensor, valid_NJ: Tensor) -> Tensor:
    """Returns (N, M): the highest IoU of each mask with any valid answer, the target of the IoU head."""
    return (iou_NMJ * valid_NJ[:, None, :]).amax(dim=2)


def neighbour_loss(features_BChw: Tensor, maps_BAss: Tensor, scale_2: Tensor) -> Tensor:
    """BCE for predicting, from the cosine similarity of features, whether a pixel and a neighbour share a segment.

    The neighbours of each pixel lie at OFFSETS.
    """
    features_BChw = F.normalize(features_BChw.float(), dim=1)
    h, w = features_BChw.shape[-2:]
    cosines, answers = [], []
    for offset, same_Bhw in zip(OFFSETS, same_segment(maps_BAss, h).unbind(1), strict=True):
        here, there = _offset_windows(h, w, *offset)
        cosines.append((features_BChw[:, :, *here] * features_BChw[:, :, *there]).sum(1).flatten())
        answers.append(same_Bhw[:, *here].flatten())
    return _pair_cost(torch.cat(cosines), torch.cat(answers), scale_2)


def affinity_loss(features_BCHW: Tensor, maps_BAss: Tensor, scale_2: Tensor) -> Tensor:
    """BCE for predicting, from the cosine similarity of features, whether two cells of an image share a segment.

    It covers all pairs of cells and trains the encoder directly, without the mask decoder in between.
    """
    features_BLC = F.normalize(features_BCHW.float(), dim=1).flatten(2).transpose(1, 2)
    same_BLL = same_segment_cells(maps_BAss, features_BCHW.shape[-1])
    return _pair_cost(features_BLC @ features_BLC.transpose(1, 2), same_BLL, scale_2)


def same_segment(maps_BAss: Tensor, side: int) -> Tensor:
    """Returns (B, O, h, w) with h = w = `side`: the fraction of label maps in which two pixels have the same label.

    The two pixels are a pixel and its neighbour at each of OFFSETS. The fraction is taken over the maps that label both
    pixels, and is NaN if there is no such map.
    """
    maps_BAhw = _at_centres(maps_BAss, side)
    shares_BOhw = maps_BAhw.new_full((len(maps_BAhw), len(OFFSETS), side, side), math.nan, dtype=torch.float32)
    for (dy, dx), share_Bhw in zip(OFFSETS, shares_BOhw.unbind(1), strict=True):
        here, there = _offset_windows(side, side, dy, dx)
        share_Bhw[:, *here] = _share_alike(maps_BAhw[..., *here], maps_BAhw[..., *there])
    return shares_BOhw


def same_segment_cells(maps_BAss: Tensor, side: int) -> Tensor:
    """Returns (B, L, L): the fraction of label maps in which two cells of a `side` x `side` grid have the same label.

    The label of a cell is the label at its centre. The fraction is NaN if no map labels both cells.
    """
    maps_BAL = _at_centres(maps_BAss, side).flatten(2)
    return _share_alike(maps_BAL[..., :, None], maps_BAL[..., None, :])


def _at_centres(maps_BAss: Tensor, side: int) -> Tensor:
    """Returns the label at the centre of each cell of a `side` x `side` grid."""
    step = maps_BAss.shape[-1] // side
    return maps_BAss[..., step // 2 :: step, step // 2 :: step]


def _share_alike(a_BAX: Tensor, b_BAX: Tensor) -> Tensor:
    """Returns (B, X): the fraction of maps with equal labels at two positions, or NaN if no map labels both."""
    alike_BX = labelled_BX = torch.zeros((), device=a_BAX.device)
    # A loop over the maps: a vectorised comparison would need A times the memory of the result.
    for a_BX, b_BX in zip(a_BAX.unbind(1), b_BAX.unbind(1), strict=True):
        is_labelled_BX = (a_BX != 0) & (b_BX != 0)
        labelled_BX = labelled_BX + is_labelled_BX.float()
        alike_BX = alike_BX + ((a_BX == b_BX) & is_labelled_BX).float()
    return alike_BX / labelled_BX


def _offset_windows(h: int, w: int, dy: int, dx: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Returns slices of the (h, w) pixels with a neighbour at (dy, dx), dy >= 0, and slices of those neighbours."""
    left, right = max(0, -dx), max(0, dx)
    return (slice(0, h - dy), slice(left, w - right)), (slice(dy, h), slice(right, w - left))


def _pair_cost(cosine_LX: Tensor, same_LX: Tensor, scale_2: Tensor) -> Tensor:
    """Class-balanced BCE for "same segment". Logits are scaled and shifted cosines; pairs with target NaN are ignored.

    Over the last axis, the mean of the positive pairs and the mean of the negative pairs are added, so that both
    classes have the same weight. The result is the mean of these sums.
    """
    logits_LX = scale_2[0] * cosine_LX + scale_2[1]
    alike_LX, apart_LX = same_LX.nan_to_num(0), 1 - same_LX.nan_to_num(1)
    of_alike_L = (F.softplus(-logits_LX) * alike_LX).sum(-1) / alike_LX.sum(-1).clamp(min=1)
    of_apart_L = (F.softplus(logits_LX) * apart_LX).sum(-1) / apart_LX.sum(-1).clamp(min=1)
    return (of_alike_L + of_apart_L).mean()
