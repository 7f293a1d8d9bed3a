"""A test stub for the four torchvision functions that `segment_anything` imports.

Import this module before `segment_anything`. If torchvision is installed, this module has no effect.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from types import ModuleType

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def box_area(boxes: Tensor) -> Tensor:
    """Areas (N,) of XYXY boxes (N, 4)."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Indices of the boxes that survive, by falling score; boxes with equal scores keep their order."""
    areas = box_area(boxes)
    order = torch.argsort(scores, descending=True, stable=True)
    kept = []
    while len(order):
        best, rest = order[0], order[1:]
        kept.append(best)
        top_left = torch.maximum(boxes[best, :2], boxes[rest, :2])
        bottom_right = torch.minimum(boxes[best, 2:], boxes[rest, 2:])
        intersection = (bottom_right - top_left).clamp(min=0).prod(dim=1)
        # Two boxes without area: 0 / 0 is NaN, which is not above the threshold, so both stay.
        iou = intersection / (areas[best] + areas[rest] - intersection)
        # In float64, as torchvision compares: the threshold is not rounded to float32.
        order = rest[~(iou.double() > iou_threshold)]
    return torch.stack(kept) if kept else order


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """`nms` inside each category of `idxs`; indices of all that survive, by falling score."""
    survives = torch.zeros(len(boxes), dtype=torch.bool)
    for category in idxs.unique():
        members = (idxs == category).nonzero()[:, 0]
        survives[members[nms(boxes[members], scores[members], iou_threshold)]] = True
    order = torch.argsort(scores, descending=True, stable=True)
    return order[survives[order]]


def to_pil_image(pixels: np.ndarray) -> Image.Image:
    """A PIL image of uint8 pixels (H, W, C)."""
    return Image.fromarray(pixels)


def resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image at `size` (height, width), by PIL's antialiased bilinear filter."""
    height, width = size
    return image.resize((width, height), Image.Resampling.BILINEAR)


def import_with(contents: Mapping[str, Mapping[str, object]], *modules: str) -> None:
    """Imports modules while stub modules with these contents are in place.

    The stubs are removed afterwards: `transformers` must not mistake them for the real modules.
    """
    for name, content in contents.items():
        stub = ModuleType(name)
        vars(stub).update(content)
        sys.modules[name] = stub
    for name in modules:
        importlib.import_module(name)
    for name in contents:
        del sys.modules[name]


TORCHVISION: dict[str, dict[str, object]] = {}
if importlib.util.find_spec("torchvision") is None:
    TORCHVISION = {
        "torchvision": {},
        "torchvision.ops": {},
        "torchvision.ops.boxes": {"batched_nms": batched_nms, "box_area": box_area},
        "torchvision.transforms": {},
        "torchvision.transforms.functional": {"resize": resize, "to_pil_image": to_pil_image},
    }
    import_with(TORCHVISION, "segment_anything")
