"""Finds the masks of a view in one pass: the exact network decodes every point."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from maskmill.filters import chain
from maskmill.filters.masks import MaskBatch
from maskmill.filters.names import DroppedBy
from maskmill.pipeline.candidates import PointDecoder, mask_filters
from maskmill.pipeline.config import GeneratorConfig
from maskmill.pipeline.records import StepTimer
from maskmill.pipeline.views import EncodedView


class OnePassSearch:
    """Finds the masks that pass the filters on single masks (predicted IoU, stability score, crop edge)."""

    def __init__(self, decoder: PointDecoder, config: GeneratorConfig) -> None:
        self.decoder = decoder
        self._config = config

    def __call__(self, encoded: EncodedView, timer: StepTimer, dropped: Counter[str]) -> MaskBatch:
        """The masks at all points of a view. Adds the number of masks that each filter drops to `dropped`."""
        return self.masks_at(encoded, torch.from_numpy(encoded.view.points_P2), timer, dropped)

    def masks_at(self, encoded: EncodedView, points_P2: Tensor, timer: StepTimer, dropped: Counter[str]) -> MaskBatch:
        """The masks at some points of a view. Adds the number of masks that each filter drops to `dropped`."""

        @torch.inference_mode()  # inference mode is thread-local
        def masks_of_batch(points_N2: Tensor) -> tuple[MaskBatch, Counter[str]]:
            found = self.decoder.decode(encoded, points_N2, self._config.pred_iou_thresh, 0.0, timer)
            dropped_here = Counter({DroppedBy.PREDICTED_IOU.counter: found.predicted_iou_NR.numel() - len(found.masks)})
            with timer.step("filter", self.decoder.threads.count):
                filters = mask_filters(encoded, self._config.stability_score_thresh)
                return chain.apply_together(found.masks, filters, dropped_here), dropped_here

        batches = [self.decoder.no_masks()]
        for batch, dropped_here in self.decoder.map_batches(masks_of_batch, points_P2):
            batches.append(batch)
            dropped.update(dropped_here)
        return MaskBatch.concat(batches)
