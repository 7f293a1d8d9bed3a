"""Which prompts decide the masks of a view, told from what a network of low precision says of all of them.

Most candidates lose to a better one by far, and a rough idea of their scores and boxes is enough to see that. The
others are computed again, exactly; the masks are those that exact candidates alone would give.

Shapes: N prompts, M candidate masks per prompt (the single mask first), X open candidates, K kept ones.
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

# How far predicted IoUs, stability scores and logits near the threshold may be off: by less, with bf16, in 999 of 1000
# candidates of the embedded model (docs/0008).
IOU_MARGIN = 0.01
STABILITY_MARGIN = 0.02
LOGIT_MARGIN = 0.1


@dataclass(frozen=True, eq=False)
class Screening:
    """What is roughly known of the candidates of N prompts."""

    predicted_iou_NM: Tensor
    boxes_NM4: Tensor  # int64, inclusive XYXY in image pixels: the mask's box is within, and holds
    inner_boxes_NM4: Tensor
    dropped_by_NM: Tensor  # int64 DroppedBy; BOX_NMS for those that pass the other filters; NONE: not a candidate

    @staticmethod
    def of(
        candidates: MaskBatch,
        inner_boxes_K4: Tensor,
        predicted_iou_NM: Tensor,
        chosen: tuple[Tensor, ...],
        filters: Iterable[Filter],
    ) -> Screening:
        """Of K candidates, the prompts and masks `chosen` (K each), after `filters`, which must be lenient."""
        dropped_by_K = first_to_drop(candidates, filters)
        dropped_by_NM = torch.full_like(predicted_iou_NM, DroppedBy.PREDICTED_IOU, dtype=torch.int64)
        dropped_by_NM[chosen] = dropped_by_K.masked_fill(dropped_by_K == DroppedBy.NONE, DroppedBy.BOX_NMS)
        # What is not a number says nothing.
        dropped_by_NM = dropped_by_NM.masked_fill(predicted_iou_NM.isnan(), DroppedBy.BOX_NMS)
        dropped_by_NM[:, 0] = DroppedBy.NONE
        boxes_NM4 = dropped_by_NM.new_zeros((*dropped_by_NM.shape, 4))
        inner_boxes_NM4 = torch.zeros_like(boxes_NM4)
        boxes_NM4[chosen], inner_boxes_NM4[chosen] = candidates.boxes, inner_boxes_K4
        return Screening(predicted_iou_NM, boxes_NM4, inner_boxes_NM4, dropped_by_NM)

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
        passes_X2 = ((self.dropped_by_NM == DroppedBy.BOX_NMS) & open_N[:, None]).nonzero()
        of_X = passes_X2.to(self.boxes_NM4.device, non_blocking=True).unbind(dim=1)
        boxes_X4, scores_X = self.boxes_NM4[of_X], self.predicted_iou_NM[of_X]
        boxes = torch.cat([exact.boxes, boxes_X4])
        scores = torch.cat([exact.predicted_iou, scores_X])
        kept_K = nms(boxes, scores, nms_threshold)
        overlaps_KX = least_iou(boxes[kept_K], self.inner_boxes_NM4[of_X], boxes_X4) > nms_threshold
        better_KX = scores[kept_K][:, None] > scores_X + IOU_MARGIN
        loses_X = (overlaps_KX & better_KX).any(dim=0).cpu()
        return passes_X2[~loses_X, 0].unique()

    def dropped(self, prompts_N: Tensor) -> Counter[str]:
        """How many candidates each filter drops, of the prompts where the boolean `prompts_N` is true."""
        counts = self.dropped_by_NM[prompts_N].flatten().bincount(minlength=len(DroppedBy)).tolist()
        return Counter(dict(zip(FILTERS, counts[DroppedBy.NONE + 1 :], strict=True)))
