"""Screening: which prompts must be decoded exactly, given the low-precision scores and boxes of all prompts.

float16/bf16 pre-selects candidates; the masks that are kept are computed in float32. Most candidates lose to another
in NMS by more than the error of low precision, and are dropped without the exact computation. The masks that NMS
keeps are the same as if all candidates were exact.

Shapes: N prompts, R candidate masks per prompt, X open candidates, K kept ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from maskmill.filters.boxes import least_iou
from maskmill.filters.chain import Filter, first_to_drop
from maskmill.filters.masks import MaskBatch
from maskmill.filters.names import FILTERS, DroppedBy
from maskmill.filters.nms import nms

# Error bounds of low precision for predicted IoUs, stability scores and logits near the threshold: with bf16, 999 of
# 1000 candidates of the embedded model stay within them (docs/0008).
IOU_MARGIN = 0.01
STABILITY_MARGIN = 0.02
LOGIT_MARGIN = 0.1


@dataclass(frozen=True, eq=False)
class Screening:
    """Low-precision scores and boxes of the candidates of N prompts."""

    predicted_iou_NR: Tensor
    boxes_NR4: Tensor  # int64, inclusive XYXY in image pixels: the mask's box is within, and holds
    inner_boxes_NR4: Tensor
    dropped_by_NR: Tensor  # int64 DroppedBy; BOX_NMS for those that pass the filters for single masks

    @staticmethod
    def of(
        candidates: MaskBatch,
        inner_boxes_K4: Tensor,
        predicted_iou_NR: Tensor,
        chosen: tuple[Tensor, ...],
        filters: Iterable[Filter],
    ) -> Screening:
        """Of K candidates, the prompts and masks `chosen` (K each), after `filters`, which must be lenient."""
        dropped_by_K = first_to_drop(candidates, filters)
        dropped_by_NR = torch.full_like(predicted_iou_NR, DroppedBy.PREDICTED_IOU, dtype=torch.int64)
        dropped_by_NR[chosen] = dropped_by_K.masked_fill(dropped_by_K == DroppedBy.NONE, DroppedBy.BOX_NMS)
        # NaN does not reject a candidate.
        dropped_by_NR = dropped_by_NR.masked_fill(predicted_iou_NR.isnan(), DroppedBy.BOX_NMS)
        boxes_NR4 = dropped_by_NR.new_zeros((*dropped_by_NR.shape, 4))
        inner_boxes_NR4 = torch.zeros_like(boxes_NR4)
        boxes_NR4[chosen], inner_boxes_NR4[chosen] = candidates.boxes, inner_boxes_K4
        return Screening(predicted_iou_NR, boxes_NR4, inner_boxes_NR4, dropped_by_NR)

    @staticmethod
    def concat(screenings: Sequence[Screening]) -> Screening:
        """The prompts of all, in order; on the CPU what dropped them."""
        predicted_iou, boxes, inner_boxes, dropped_by = (
            torch.cat([getattr(s, column.name) for s in screenings]) for column in fields(Screening)
        )
        return Screening(predicted_iou, boxes, inner_boxes, dropped_by.cpu())

    def contenders(self, open_N: Tensor, exact: MaskBatch, nms_threshold: float) -> Tensor:
        """The prompts, by index, with a candidate that NMS may keep, of those where the boolean `open_N` is true.

        `open_N` and what is returned are on the CPU. `exact` are the candidates of all others. Each candidate that is
        not among the contenders loses to one that is, or to an exact one: where there are no contenders any more, NMS
        of `exact` is NMS of all.
        """
        passes_E2 = ((self.dropped_by_NR == DroppedBy.BOX_NMS) & open_N[:, None]).nonzero()
        of_E = passes_E2.to(self.boxes_NR4.device, non_blocking=True).unbind(dim=1)
        boxes_E4, scores_E = self.boxes_NR4[of_E], self.predicted_iou_NR[of_E]
        boxes = torch.cat([exact.boxes, boxes_E4])
        scores = torch.cat([exact.predicted_iou, scores_E])
        kept_K = nms(boxes, scores, nms_threshold)
        overlaps_KE = least_iou(boxes[kept_K], self.inner_boxes_NR4[of_E], boxes_E4) > nms_threshold
        better_KE = scores[kept_K][:, None] > scores_E + IOU_MARGIN
        loses_E = (overlaps_KE & better_KE).any(dim=0).cpu()
        return passes_E2[~loses_E, 0].unique()

    def dropped(self, prompts_N: Tensor) -> Counter[str]:
        """How many candidates each filter drops, of the prompts where the boolean `prompts_N` is true."""
        counts = self.dropped_by_NR[prompts_N].flatten().bincount(minlength=len(DroppedBy)).tolist()
        return Counter(dict(zip(FILTERS, counts[DroppedBy.NONE + 1 :], strict=True)))
