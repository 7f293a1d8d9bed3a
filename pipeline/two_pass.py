"""Finds the masks of a view in two passes: a low-precision network screens all points, the exact network decodes the
points that remain.

NMS keeps the same masks as with one pass (`filters.screening`, docs/0008).
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from maskmill.filters.masks import MaskBatch
from maskmill.filters.screening import IOU_MARGIN, LOGIT_MARGIN, Screening
from maskmill.pipeline.candidates import PointDecoder, mask_filters
from maskmill.pipeline.config import GeneratorConfig
from maskmill.pipeline.one_pass import OnePassSearch
from maskmill.pipeline.records import StepTimer
from maskmill.pipeline.views import EncodedView


class TwoPassSearch:
    """Finds the masks that pass the filters on single masks, except most of the masks that NMS would drop."""

    def __init__(self, screen: PointDecoder, exact: OnePassSearch, config: GeneratorConfig) -> None:
        self._screen, self._exact, self._config = screen, exact, config

    def __call__(self, encoded: EncodedView, timer: StepTimer, dropped: Counter[str]) -> MaskBatch:
        """The masks of a view. Adds the number of masks that each filter drops to `dropped`."""
        points_P2 = torch.from_numpy(encoded.view.points_P2)
        screening = self._screen_points(encoded, points_P2, timer)
        masks = self._exact.decoder.no_masks()
        open_P = torch.ones(len(points_P2), dtype=torch.bool)
        while True:
            with timer.step("filter"):
                contenders = screening.contenders(open_P, masks, self._config.box_nms_thresh)
            if len(contenders) == 0:
                dropped.update(screening.dropped(open_P))
                return masks
            open_P[contenders] = False
            masks = MaskBatch.concat([masks, self._exact.masks_at(encoded, points_P2[contenders], timer, dropped)])

    def _screen_points(self, encoded: EncodedView, points_P2: Tensor, timer: StepTimer) -> Screening:
        """Decodes all points with the low-precision network. Thresholds are relaxed by its error."""
        iou_threshold = self._config.pred_iou_thresh
        iou_threshold = iou_threshold - IOU_MARGIN if iou_threshold > 0 else 0

        @torch.inference_mode()  # inference mode is thread-local
        def screening_of_batch(points_N2: Tensor) -> Screening:
            found = self._screen.decode(encoded, points_N2, iou_threshold, LOGIT_MARGIN, timer)
            with timer.step("filter", self._screen.threads.count):
                filters = mask_filters(encoded, self._config.stability_score_thresh, found.inner_boxes_K4)
                return Screening.of(found.masks, found.inner_boxes_K4, found.predicted_iou_NR, found.chosen, filters)

        return Screening.concat(list(self._screen.map_batches(screening_of_batch, points_P2)))
