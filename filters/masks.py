"""MaskBatch: the candidate masks of one image, as row-aligned columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class MaskBatch:
    """N candidate masks of one image, on one device. Indexing returns a new batch.

    Full-resolution masks are deliberately no column: they would grow with image size times masks. They are
    recomputed from `logits`, a block at a time, where they are needed.
    """

    logits: Tensor  # (N, h, w) mask logits over the padded square that the crop was resized into
    predicted_iou: Tensor  # (N,) float32; can exceed 1
    stability_score: Tensor  # (N,) float32
    area: Tensor  # (N,) int64, pixels
    boxes: Tensor  # (N, 4) int64, inclusive XYXY in image pixels; of an empty mask: its crop's corner, twice
    points: Tensor  # (N, 2) float64, the click, XY in image pixels
    crop_boxes: Tensor  # (N, 4) int64, half-open XYXY in image pixels

    def __post_init__(self) -> None:
        shapes = {column.name: tuple(getattr(self, column.name).shape) for column in fields(self)}
        rows = len(self)
        expected = {
            "logits": (rows, *self.logits.shape[1:]),
            "predicted_iou": (rows,),
            "stability_score": (rows,),
            "area": (rows,),
            "boxes": (rows, 4),
            "points": (rows, 2),
            "crop_boxes": (rows, 4),
        }
        assert self.logits.ndim == 3, f"logits are not (N, h, w): {shapes}"
        assert shapes == expected, f"columns do not align: {shapes}"

    def __len__(self) -> int:
        return self.logits.shape[0]

    def select(self, rows: Tensor) -> MaskBatch:
        """The rows of a boolean mask (N,) or of an index tensor, in that order; it may be on the CPU."""
        if rows.dtype == torch.bool:
            rows = rows.nonzero()[:, 0]  # once: on a GPU every column would wait for their number
        rows = rows.to(self.logits.device, non_blocking=True)
        return MaskBatch(**{column.name: getattr(self, column.name)[rows] for column in fields(self)})

    @staticmethod
    def empty(logits_side: int, device: torch.device) -> MaskBatch:
        """No rows, of square logits."""
        return MaskBatch(
            logits=torch.empty(0, logits_side, logits_side, device=device),
            predicted_iou=torch.empty(0, device=device),
            stability_score=torch.empty(0, device=device),
            area=torch.empty(0, dtype=torch.int64, device=device),
            boxes=torch.empty(0, 4, dtype=torch.int64, device=device),
            points=torch.empty(0, 2, dtype=torch.float64, device=device),
            crop_boxes=torch.empty(0, 4, dtype=torch.int64, device=device),
        )

    @staticmethod
    def concat(batches: Sequence[MaskBatch]) -> MaskBatch:
        """The rows of all batches, in order. At least one batch."""
        return MaskBatch(
            **{column.name: torch.cat([getattr(b, column.name) for b in batches]) for column in fields(MaskBatch)}
        )
