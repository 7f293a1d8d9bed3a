"""Greedy non-maximum suppression of boxes.

Shapes: K masks, E kept masks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskmill.compiled import njit


def nms(boxes_K4: Tensor, scores_K: Tensor, iou_threshold: float) -> Tensor:
    """Indices (E,) int64 of the kept boxes, by descending score; equal scores keep their order.

    A box is dropped if its IoU with a kept box of higher score is above the threshold. The arithmetic is that of
    `torchvision.ops.nms` on the CPU: XYXY corners, areas without the inclusive pixel, in float32, compared in
    float64. A box without area has IoU 0 or NaN with every other box, so it neither suppresses nor is suppressed.

    Runs on the host: synchronises with a GPU to copy boxes and scores.
    """
    order_K = scores_K.cpu().argsort(descending=True, stable=True)
    kept_E = _keep(boxes_K4.cpu()[order_K].float().numpy(), float(iou_threshold))
    return order_K[torch.from_numpy(kept_E)].to(boxes_K4.device, non_blocking=True)


@njit(error_model="numpy")  # IEEE division: no ZeroDivisionError
def _keep(boxes_K4: Any, iou_threshold: float) -> NDArray[np.int64]:
    """Indices of the kept boxes. `boxes_K4` are sorted by descending score."""
    kept = np.empty(len(boxes_K4), np.int64)
    count = 0
    for i in range(len(boxes_K4)):
        x0, y0, x1, y1 = boxes_K4[i]
        area = (x1 - x0) * (y1 - y0)
        for k in kept[:count]:
            u0, v0, u1, v1 = boxes_K4[k]
            width, height = min(x1, u1) - max(x0, u0), min(y1, v1) - max(y0, v0)
            if width > 0 and height > 0:
                overlap = width * height
                if np.float64(overlap / ((u1 - u0) * (v1 - v0) + area - overlap)) > iou_threshold:
                    break
        else:
            kept[count] = i
            count += 1
    return kept[:count]
