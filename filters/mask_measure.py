"""Scores, boxes and run lengths of masks, computed from low-resolution logits without storing full-resolution masks.

The results equal those of the reference, which stores every pixel: `model.frame.Frame.to_image_logits`, then counting
of pixels and `filters.boxes`. Memory per thread is a few rows of pixels, independent of the number of masks.

Shapes: K masks, h w low-resolution logits, H W crop in pixels.
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

from torch import Tensor
from torch.overrides import wrap_torch_function

from maskmill.filters import rle
from maskmill.filters.upsampling import Upsampling


class Measures(NamedTuple):
    """The properties of K masks that the filters use."""

    stability_score: Tensor  # (K,) float32; NaN if no pixel is above the lower threshold
    area: Tensor  # (K,) int64, pixels
    boxes: Tensor  # (K, 4) int64, inclusive XYXY in pixels of the crop; zeros for an empty mask
    inner_boxes: Tensor  # (K, 4) int64, contained in the exact boxes, see `margin`; x0 > x1 if empty


# Subclasses of Tensor can override these functions with `__torch_function__`, like operators of PyTorch.
@wrap_torch_function(lambda logits_Khw, *_, **__: (logits_Khw,))  # pyright: ignore[reportArgumentType] (torch's types)
def measure(logits_Khw: Tensor, upsampling: Upsampling, offset: float, margin: float = 0.0) -> Measures:
    """Measures masks. A pixel belongs to the mask if its logit is above 0.

    The stability score is the IoU of the masks at the thresholds `offset` and `-offset`. One contains the other, so the
    IoU is the ratio of their areas. `margin` bounds the error of the logits: the box of the exact mask lies between
    `inner_boxes` and `boxes`.
    """
    # Converted to float: numba would compile each kernel again for integers.
    counts_K3, boxes_K24 = _kernels(logits_Khw).measure(logits_Khw, upsampling, float(offset), float(margin))
    above_K, below_K, area_K = counts_K3.unbind(dim=1)
    outer_K4, inner_K4 = boxes_K24.unbind(dim=1)
    return Measures(above_K / below_K, area_K, outer_K4 * (outer_K4[:, 2:3] >= 0), inner_K4)


@wrap_torch_function(lambda logits_Khw, *_, **__: (logits_Khw,))  # pyright: ignore[reportArgumentType] (torch's types)
def encode(logits_Khw: Tensor, upsampling: Upsampling, corner: tuple[int, int], height: int, width: int) -> list[bytes]:
    """The `counts` of the masks in an image of (height, width) pixels. `corner` is the top-left (x, y) of the crop."""
    offset = corner[0] * height + corner[1]
    return rle.from_changes(_kernels(logits_Khw).find_changes(logits_Khw, upsampling, offset, height), height * width)


def _kernels(logits_Khw: Tensor) -> ModuleType:
    # Imported here because Triton may not be installed on machines without a GPU.
    if logits_Khw.is_cuda:
        from maskmill.filters import mask_measure_gpu as kernels
    else:
        from maskmill.filters import mask_measure_cpu as kernels
    return kernels
