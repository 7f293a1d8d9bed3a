"""Validation metrics on held-out images, measured during training.

Shapes: P prompts on one image, M masks per prompt, J ground-truth masks per prompt, s label map side, h w mask side.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from maskmill.model.deepest_pixel import deepest_pixel
from maskmill.model.network import Network
from maskmill.model.prompts import AMBIGUITY_MASKS, SINGLE_MASK, choose
from maskmill.model.training.augment import LABEL_STRIDE, Example, fit
from maskmill.model.training.data import LabelledImage
from maskmill.model.training.losses import best_iou, mask_costs
from maskmill.model.training.prompts import (
    MAX_ALTERNATIVES,
    alternatives_at,
    list_segments,
    normalise,
    pool_masks,
)

# Segments that cover a smaller fraction of the labelled area are skipped, because their annotations are inconsistent.
_MIN_SEGMENT_SHARE = 0.005


@dataclass(frozen=True)
class HeldOutFigures:
    """Mean metrics over all prompts. IoUs are computed at the resolution of the mask logits."""

    prompts: int
    one_click_best: float  # highest IoU of the three masks with the clicked segment
    one_click_ranked: float  # IoU of the mask with the highest predicted IoU with the clicked segment
    box: float  # IoU of the single mask for a box prompt around the segment
    iou_correlation: float  # Pearson correlation of predicted and true IoU, three masks per click


def measure(network: Network, images: Iterable[LabelledImage], prompts_per_image: int = 12) -> HeldOutFigures:
    """Evaluates the model with a click at the centre of each segment and a box around it.

    The prompts depend only on the index of the image and its label maps, so results are comparable across calls.
    """
    columns = [
        _measure_image(network, image, prompts_per_image, np.random.default_rng(i)) for i, image in enumerate(images)
    ]
    best_P, ranked_P, box_P, predicted_P3, true_P3 = (
        torch.cat(column).numpy() for column in zip(*columns, strict=True)
    )
    return HeldOutFigures(
        len(best_P),
        float(best_P.mean()),
        float(ranked_P.mean()),
        float(box_P.mean()),
        float(np.corrcoef(predicted_P3.ravel(), true_P3.ravel())[0, 1]),
    )


@torch.inference_mode()
def _measure_image(network: Network, image: LabelledImage, count: int, rng: Generator) -> tuple[Tensor, ...]:
    example = fit(image, network.config.image_size)
    points_P2, boxes_P4, answers_PJhw, valid_PJ = _questions(example, count, rng)
    embedding = network.encode_images(normalise([example], network.config).to(network.device))
    decoded = network.decode_points(embedding, points_P2.to(network.device))
    everything_PM = torch.ones_like(decoded.predicted_iou_NM, dtype=torch.bool)
    logits_PMhw = network.decode_masks(decoded, everything_PM).unflatten(0, everything_PM.shape).cpu()
    iou_PMJ = mask_costs(logits_PMhw, answers_PJhw).iou_NMJ
    predicted_P3, clicked_P3 = (
        decoded.predicted_iou_NM[:, AMBIGUITY_MASKS].cpu().float(),
        iou_PMJ[:, AMBIGUITY_MASKS, 0],
    )
    top_P1 = predicted_P3.argmax(dim=1, keepdim=True)

    in_box = network.decode_prompts(embedding, boxes_N4=boxes_P4.to(network.device))
    single_PM = choose(SINGLE_MASK, in_box.predicted_iou_NM)
    box_logits_P1hw = network.decode_masks(in_box, single_PM)[:, None].cpu()
    box_P = mask_costs(box_logits_P1hw, answers_PJhw[:, :1]).iou_NMJ[:, 0, 0]
    true_P3 = best_iou(iou_PMJ, valid_PJ)[:, AMBIGUITY_MASKS]
    return clicked_P3.amax(1), clicked_P3.gather(1, top_P1)[:, 0], box_P, predicted_P3, true_P3


def _questions(example: Example, count: int, rng: Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Samples up to `count` segments and returns clicks, boxes, ground-truth masks and their validity.

    The first ground-truth mask of each prompt is the sampled segment.
    """
    maps_Ass = example.maps_Ass
    side = maps_Ass.shape[-1]
    smallest = _MIN_SEGMENT_SHARE * np.count_nonzero(maps_Ass.any(axis=0))
    segments = [
        segment
        for segment in list_segments(maps_Ass)
        if np.count_nonzero(maps_Ass[segment[0]] == segment[1]) >= smallest
    ]
    chosen = rng.permutation(len(segments))[:count]
    points, boxes = [], []
    answers = np.zeros((len(chosen), MAX_ALTERNATIVES, side, side), np.bool_)
    valid = np.zeros((len(chosen), MAX_ALTERNATIVES), np.bool_)
    for row, i in enumerate(chosen):
        a, label = segments[i]
        mask_ss = maps_Ass[a] == label
        (x, y), _ = deepest_pixel(mask_ss)
        others = np.delete(np.arange(len(maps_Ass)), a)
        found = alternatives_at(maps_Ass, x, y, np.concatenate([[a], others]))
        answers[row, : len(found)], valid[row, : len(found)] = found, True
        points.append([LABEL_STRIDE * x + 0.5, LABEL_STRIDE * y + 0.5])
        rows, columns = np.flatnonzero(mask_ss.any(axis=1)), np.flatnonzero(mask_ss.any(axis=0))
        boxes.append([LABEL_STRIDE * v for v in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)])
    return (
        torch.tensor(points, dtype=torch.float32),
        torch.tensor(boxes, dtype=torch.float32),
        pool_masks(answers),
        torch.from_numpy(valid),
    )
