"""What screening leaves out cannot be kept: whatever a rough look says, the masks are those of exact candidates."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from maskmill.filters import chain
from maskmill.filters.boxes import least_iou
from maskmill.filters.masks import MaskBatch
from maskmill.filters.names import FILTERS
from maskmill.filters.nms import nms
from maskmill.filters.screening import IOU_MARGIN, STABILITY_MARGIN, Screening

NMS_THRESHOLD, IOU_THRESHOLD, STABILITY_THRESHOLD = 0.5, 0.4, 0.5
MASKS = 4  # the single one and three


def batch(scores_K: Tensor, stability_K: Tensor, boxes_K4: Tensor, prompts_K: Tensor) -> MaskBatch:
    """Candidates of a whole image of 1000 x 1000 pixels; the number of the prompt stands in its point."""
    rows = len(scores_K)
    return MaskBatch(
        logits=torch.zeros(rows, 1, 1),
        predicted_iou=scores_K,
        stability_score=stability_K,
        area=torch.ones(rows, dtype=torch.int64),
        boxes=boxes_K4,
        points=prompts_K.double()[:, None].expand(rows, 2),
        crop_boxes=torch.tensor([[0, 0, 1000, 1000]]).expand(rows, 4),
    )


class Candidates:
    """Of N prompts: scores and boxes, exact and as they are roughly known."""

    def __init__(self, prompts: int, seed: int, error: float) -> None:
        generator = torch.Generator().manual_seed(seed)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator)

        # A few places with many candidates each, as on a photograph.
        corner = (uniform(3, 2) * 500).round()[torch.randint(3, (prompts, MASKS), generator=generator)]
        size = 150 + 200 * uniform(prompts, MASKS, 2)
        self.boxes = torch.cat([corner, corner + size], dim=2).round().long()
        self.scores, self.stability = uniform(prompts, MASKS), uniform(prompts, MASKS)
        noise = error * (2 * uniform(prompts, MASKS, 2) - 1)
        self.rough_scores = self.scores + noise[..., 0] * IOU_MARGIN
        self.rough_stability = self.stability + noise[..., 1] * STABILITY_MARGIN
        # The box lies between two, most of them near, some far from it: there may be a speck.
        off = (error * 100 * uniform(prompts, MASKS, 8) ** 8).round().long()
        outwards = torch.tensor([-1, -1, 1, 1])
        self.outer_boxes, self.inner_boxes = self.boxes + off[..., :4] * outwards, self.boxes - off[..., 4:] * outwards

    def exact(self, prompts: Tensor) -> MaskBatch:
        """What passes of some prompts."""
        keep_NM = self.scores[prompts] > IOU_THRESHOLD
        keep_NM[:, 0] = False
        scores_K, stability_K, boxes_K4 = (x[prompts][keep_NM] for x in (self.scores, self.stability, self.boxes))
        candidates = batch(scores_K, stability_K, boxes_K4, prompts[keep_NM.nonzero()[:, 0]])
        return candidates.select(candidates.stability_score >= STABILITY_THRESHOLD)

    def screening(self) -> Screening:
        rough = (self.rough_scores, self.rough_stability, self.outer_boxes, self.inner_boxes)
        scores_NR, stability_NR, outer_NR4, inner_NR4 = (x[:, 1:] for x in rough)
        keep_NR = scores_NR > IOU_THRESHOLD - IOU_MARGIN
        scores_K, stability_K, outer_K4, inner_K4 = (
            x[keep_NR] for x in (scores_NR, stability_NR, outer_NR4, inner_NR4)
        )
        chosen = keep_NR.nonzero().unbind(dim=1)
        candidates = batch(scores_K, stability_K, outer_K4, chosen[0])
        lenient = chain.stability_score(STABILITY_THRESHOLD - STABILITY_MARGIN)
        return Screening.of(candidates, inner_K4, scores_NR, chosen, [lenient])


def screened(candidates: Candidates, screening: Screening) -> tuple[MaskBatch, int]:
    """What NMS keeps of the prompts that were contenders at some time, and how many these were."""
    prompts = len(candidates.scores)
    exact, still_open = candidates.exact(torch.arange(0)), torch.ones(prompts, dtype=torch.bool)
    while len(chosen := screening.contenders(still_open, exact, NMS_THRESHOLD)):
        still_open[chosen] = False
        exact = MaskBatch.concat([exact, candidates.exact(chosen)])
    kept = exact.select(nms(exact.boxes, exact.predicted_iou, NMS_THRESHOLD))
    return kept, prompts - int(still_open.sum())


def found(masks: MaskBatch) -> list[tuple[float, ...]]:
    return [(*row, *box) for row, box in zip(masks.points.tolist(), masks.boxes.tolist(), strict=True)]


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 40), st.integers(0, 10**6), st.sampled_from([0.0, 0.5, 1.0]))
def test_masks_are_those_of_exact_candidates(prompts: int, seed: int, error: float) -> None:
    candidates = Candidates(prompts, seed, error)
    everything = candidates.exact(torch.arange(prompts))
    expected = everything.select(nms(everything.boxes, everything.predicted_iou, NMS_THRESHOLD))
    kept, _ = screened(candidates, candidates.screening())
    assert found(kept) == found(expected)


def test_most_prompts_are_left_out() -> None:
    candidates = Candidates(400, seed=0, error=1.0)
    kept, contenders = screened(candidates, candidates.screening())
    assert len(kept) <= contenders < 200


def test_prompts_whose_rough_scores_are_not_numbers_are_contenders() -> None:
    candidates = Candidates(50, seed=0, error=0.0)
    for column in (candidates.rough_scores, candidates.rough_stability):
        column[[7, 9]] = math.nan
    screening = candidates.screening()
    assert {7, 9} <= set(
        screening.contenders(torch.ones(50, dtype=torch.bool), candidates.exact(torch.arange(0)), 0.5).tolist()
    )
    everything = candidates.exact(torch.arange(50))
    expected = everything.select(nms(everything.boxes, everything.predicted_iou, NMS_THRESHOLD))
    assert found(screened(candidates, screening)[0]) == found(expected)


def test_every_candidate_that_was_left_out_is_counted_once() -> None:
    candidates = Candidates(50, seed=3, error=0.0)
    screening = candidates.screening()
    dropped = screening.dropped(torch.ones(50, dtype=torch.bool))
    assert tuple(dropped) == FILTERS
    assert sum(dropped.values()) == 3 * 50
    assert dropped["predicted_iou"] == (candidates.scores[:, 1:] <= IOU_THRESHOLD - IOU_MARGIN).sum()
    assert min(dropped["stability_score"], dropped["box_nms"]) > 0
    assert sum(screening.dropped(torch.zeros(50, dtype=torch.bool)).values()) == 0


def test_overlap_is_that_of_nms() -> None:
    """Of each pair the second is dropped exactly where the overlap is above the threshold."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.randint(0, 8, (200, 2), generator=generator)
    boxes_N4 = torch.cat([corners, corners + torch.randint(1, 9, (200, 2), generator=generator)], dim=1)
    overlap_NN = least_iou(boxes_N4, boxes_N4, boxes_N4)
    for i in range(0, 200, 2):
        kept = nms(boxes_N4[i : i + 2], torch.tensor([1.0, 0.5]), 0.3)
        assert (len(kept) == 1) == bool(overlap_NN[i, i + 1].double() > 0.3)
