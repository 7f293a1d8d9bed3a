"""Screening: selects the prompts to decode exactly, given low-precision scores and boxes of all prompts.

float16/bf16 pre-selects candidates; the masks that are kept are computed in float32. Most candidates lose to another
candidate in NMS by more than the error of low precision, and are dropped without the exact computation. NMS keeps the
same masks as if all candidates were exact.

Shapes: N prompts, R ambiguity masks per prompt, E open candidates (neither decoded nor dropped), K candidates or kept
masks.
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
    boxes_NR4: Tensor  # int64, inclusive XYXY in image pixels; the box of the exact mask lies between the two
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
        """Applies `filters` to K candidates. `filters` must be relaxed by the error of low precision.

        `chosen` holds the prompt and the mask index (K,) of each candidate.
        """
        dropped_by_K = first_to_drop(candidates, filters)
        dropped_by_NR = torch.full_like(predicted_iou_NR, DroppedBy.PREDICTED_IOU, dtype=torch.int64)
        dropped_by_NR[chosen] = dropped_by_K.masked_fill(dropped_by_K == DroppedBy.NONE, DroppedBy.BOX_NMS)
        # A predicted IoU of NaN does not reject a candidate.
        dropped_by_NR = dropped_by_NR.masked_fill(predicted_iou_NR.isnan(), DroppedBy.BOX_NMS)
        boxes_NR4 = dropped_by_NR.new_zeros((*dropped_by_NR.shape, 4))
        inner_boxes_NR4 = torch.zeros_like(boxes_NR4)
        boxes_NR4[chosen], inner_boxes_NR4[chosen] = candidates.boxes, inner_boxes_K4
        return Screening(predicted_iou_NR, boxes_NR4, inner_boxes_NR4, dropped_by_NR)

    @staticmethod
    def concat(screenings: Sequence[Screening]) -> Screening:
        """The prompts of all screenings, in order. `dropped_by_NR` is copied to the CPU."""
        predicted_iou, boxes, inner_boxes, dropped_by = (
            torch.cat([getattr(s, column.name) for s in screenings]) for column in fields(Screening)
        )
        return Screening(predicted_iou, boxes, inner_boxes, dropped_by.cpu())

    def contenders(self, open_N: Tensor, exact: MaskBatch, nms_threshold: float) -> Tensor:
        """The indices of open prompts with a candidate that NMS may keep.

        `open_N` is true for open prompts; `exact` holds the exact candidates of the other prompts. `open_N` and the
        result are on the CPU. Every other open candidate loses in NMS to a contender or to an exact candidate. So once
        there are no contenders, NMS of `exact` gives the same masks as NMS of all candidates.
        """
        open_E2 = ((self.dropped_by_NR == DroppedBy.BOX_NMS) & open_N[:, None]).nonzero()
        index_E = open_E2.to(self.boxes_NR4.device, non_blocking=True).unbind(dim=1)
        boxes_E4, scores_E = self.boxes_NR4[index_E], self.predicted_iou_NR[index_E]
        boxes = torch.cat([exact.boxes, boxes_E4])
        scores = torch.cat([exact.predicted_iou, scores_E])
        kept_K = nms(boxes, scores, nms_threshold)
        overlaps_KE = least_iou(boxes[kept_K], self.inner_boxes_NR4[index_E], boxes_E4) > nms_threshold
        better_KE = scores[kept_K][:, None] > scores_E + IOU_MARGIN
        loses_E = (overlaps_KE & better_KE).any(dim=0).cpu()
        return open_E2[~loses_E, 0].unique()

    def dropped(self, prompts_N: Tensor) -> Counter[str]:
        """The number of candidates that each filter drops, over the prompts for which `prompts_N` is true."""
        counts = self.dropped_by_NR[prompts_N].flatten().bincount(minlength=len(DroppedBy)).tolist()
        return Counter(dict(zip(FILTERS, counts[DroppedBy.NONE + 1 :], strict=True)))
