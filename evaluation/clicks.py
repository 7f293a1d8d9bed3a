"""Measures the masks that a model predicts for clicks, which are placed as in the paper.

The first click is the pixel of the segment that is farthest from its border; the model predicts three masks. Each later
click is the pixel of the error region (missing or extra pixels) that is farthest from the border of that region; with
the logits of the previous mask, the model predicts one mask.

Shapes: K segments, P clicks so far, H W pixels.
Source: Kirillov et al. 2023, Appendix D.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from maskmill.annotations import AnnotatedImage
from maskmill.evaluation import overlap
from maskmill.filters import rle
from maskmill.model.deepest_pixel import deepest_pixel
from maskmill.model.predictor import Prediction

Mask = NDArray[np.bool_]

CLICKS = (1, 2, 3, 5, 9)
MASKS = 3


class Predictor(Protocol):
    """The interface of model.predictor.EncodedImage."""

    def predict(
        self,
        points: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        box: ArrayLike | None = None,
        mask_input: ArrayLike | None = None,
        multimask: bool = True,
    ) -> Prediction: ...


class Click(NamedTuple):
    """A pixel, and whether it belongs to the segment."""

    x: int
    y: int
    inside: bool


@dataclass(frozen=True, eq=False)
class ClickScores:
    """The IoUs of the segments of one image with the masks predicted for clicks on them."""

    # After each number of clicks in CLICKS. After the first click: the mask with the highest predicted IoU of three.
    iou_KC: NDArray[np.float64]
    oracle_K: NDArray[np.float64]  # after the first click: the best of three masks
    predicted_K3: NDArray[np.float64]  # the predicted IoU of the three masks after the first click
    clicked_K3: NDArray[np.float64]  # their IoU with the segment that was clicked
    any_K3: NDArray[np.float64]  # their best IoU with any annotated mask under the click, which is ambiguous


def measure_clicks(
    predictor: Predictor, image: AnnotatedImage, segments: Sequence[int], last: int = CLICKS[-1]
) -> ClickScores:
    """Places `last` clicks on each of the segments. The columns of more clicks than that are NaN."""
    iou_KC = np.full((len(segments), len(CLICKS)), np.nan)
    oracle_K = np.zeros(len(segments))
    predicted_K3, clicked_K3, any_K3 = (np.zeros((len(segments), MASKS)) for _ in range(3))
    answers = [counts for counts, crowd in zip(image.rles, image.crowd_K, strict=True) if not crowd]
    for row, k in enumerate(segments):
        segment_HW = image.decode(k)
        click = first_click(segment_HW)
        first = predictor.predict([click[:2]], [1])
        clicked_K3[row] = [iou(mask_HW, segment_HW) for mask_HW in first.masks]
        any_K3[row] = _best_under(click, first.masks, answers)
        predicted_K3[row] = first.scores
        oracle_K[row] = clicked_K3[row].max()
        iou_P = _refine(predictor, first, click, segment_HW, last)
        counted = [count for count in CLICKS if count <= last]
        iou_KC[row, : len(counted)] = [iou_P[count - 1] for count in counted]
    return ClickScores(iou_KC, oracle_K, predicted_K3, clicked_K3, any_K3)


def first_click(segment_HW: Mask) -> Click:
    """The pixel of a segment that is farthest from its border. The segment must not be empty."""
    (x, y), _ = deepest_pixel(segment_HW)
    return Click(x, y, inside=True)


def next_click(mask_HW: Mask, segment_HW: Mask) -> Click | None:
    """The pixel deepest inside the missing or extra pixels of the mask. None if the mask is exact."""
    missed, missed_depth = deepest_pixel(segment_HW & ~mask_HW)
    extra, extra_depth = deepest_pixel(mask_HW & ~segment_HW)
    if missed_depth == extra_depth == 0:
        return None
    return Click(*missed, inside=True) if missed_depth >= extra_depth else Click(*extra, inside=False)


def iou(a_HW: Mask, b_HW: Mask) -> float:
    """The IoU of two masks, at least one of them not empty."""
    intersection = np.count_nonzero(a_HW & b_HW)
    return intersection / (np.count_nonzero(a_HW) + np.count_nonzero(b_HW) - intersection)


def _refine(predictor: Predictor, first: Prediction, click: Click, segment_HW: Mask, last: int) -> list[float]:
    """IoUs after 1, 2 ... `last` clicks."""
    best = int(first.scores.argmax())
    mask_HW, logits_hw = first.masks[best], first.logits[best]
    clicks, ious = [click], [iou(mask_HW, segment_HW)]
    while len(ious) < last:
        following = next_click(mask_HW, segment_HW)
        if following is None:
            return ious + [1.0] * (last - len(ious))
        clicks.append(following)
        points_P2, labels_P = [c[:2] for c in clicks], [int(c.inside) for c in clicks]
        answer = predictor.predict(points_P2, labels_P, mask_input=logits_hw, multimask=False)
        mask_HW, logits_hw = answer.masks[0], answer.logits[0]
        ious.append(iou(mask_HW, segment_HW))
    return ious


def _best_under(click: Click, masks_MHW: NDArray[np.bool_], answers: Sequence[bytes]) -> NDArray[np.float64]:
    height, width = masks_MHW.shape[1:]
    under = overlap.contain(click.x, click.y, answers, height, width)
    likely = [counts for counts, is_under in zip(answers, under, strict=True) if is_under]
    return overlap.iou([rle.encode(mask_HW) for mask_HW in masks_MHW], likely, height, width).max(axis=1)
