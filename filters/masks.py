"""MaskBatch: the candidate masks of one image, as row-aligned columns.

Shapes: K masks, h w low-resolution logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class MaskBatch:
    """K candidate masks of one image, on one device. Immutable: `select` and `concat` return new batches.

    There is no column of full-resolution masks, because it would need (image pixels * masks) bytes. Full-resolution
    masks are recomputed from `logits` where they are needed, a block of masks at a time.
    """

    logits: Tensor  # (K, h, w) mask logits over the padded input square of the crop
    predicted_iou: Tensor  # (K,) float32; can exceed 1
    stability_score: Tensor  # (K,) float32
    area: Tensor  # (K,) int64, pixels
    boxes: (
        Tensor  # (K, 4) int64, inclusive XYXY in image pixels; an empty mask has the top-left corner of its crop twice
    )
    points: Tensor  # (K, 2) float64, the prompt point, XY in image pixels
    crop_boxes: Tensor  # (K, 4) int64, half-open XYXY in image pixels

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
        assert self.logits.ndim == 3, f"logits are not (K, h, w): {shapes}"
        assert shapes == expected, f"columns do not align: {shapes}"

    def __len__(self) -> int:
        return self.logits.shape[0]

    def select(self, rows: Tensor) -> MaskBatch:
        """The rows where a boolean (K,) is true, or the rows of an index tensor, in its order. It may be on the CPU."""
        if rows.dtype == torch.bool:
            rows = rows.nonzero()[
                :, 0
            ]  # once: boolean indexing of each column would synchronise with the GPU each time
        rows = rows.to(self.logits.device, non_blocking=True)
        return MaskBatch(**{column.name: getattr(self, column.name)[rows] for column in fields(self)})

    @staticmethod
    def empty(logits_side: int, device: torch.device) -> MaskBatch:
        """A batch without rows, for square logits."""
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
