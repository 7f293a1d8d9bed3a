"""Greedy non-maximum suppression of boxes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def nms(boxes_N4: Tensor, scores_N: Tensor, iou_threshold: float) -> Tensor:
    """Rows (K,) int64 of the boxes that are kept, by descending score; equal scores keep their order.

    A box is dropped when its IoU with a better kept one is above the threshold. The arithmetic is that of
    `torchvision.ops.nms` on the CPU: XYXY corners, areas without the inclusive pixel, in float32, compared in
    float64. A box without area has IoU 0 or NaN with any other, so it neither suppresses nor is suppressed.
    """
    order_N = scores_N.argsort(descending=True, stable=True)
    x0, y0, x1, y1 = boxes_N4[order_N].float().cpu().numpy().T
    area = (x1 - x0) * (y1 - y0)
    kept: list[int] = []
    rest = np.arange(len(order_N))
    while len(rest):
        best, rest = rest[0], rest[1:]
        kept.append(int(best))
        width = np.minimum(x1[best], x1[rest]) - np.maximum(x0[best], x0[rest])
        height = np.minimum(y1[best], y1[rest]) - np.maximum(y0[best], y0[rest])
        overlap = width.clip(min=0) * height.clip(min=0)
        with np.errstate(invalid="ignore"):
            iou = overlap / (area[best] + area[rest] - overlap)
        rest = rest[~(iou.astype(np.float64) > iou_threshold)]
    return order_N[torch.tensor(kept, dtype=torch.int64, device=order_N.device)]
