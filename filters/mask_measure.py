"""Scores, boxes and run lengths of masks, from low-resolution logits and without full-resolution masks.

Equal to `model.frame.Frame.to_image_logits` followed by counting pixels and `filters.boxes`, which store every pixel
and are the reference. The memory is that of a few rows of pixels for each thread, whatever the image and the masks.

Shapes: N masks, h w low-resolution logits, H W size of the crop, in pixels.
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

from torch import Tensor
from torch.overrides import wrap_torch_function

from maskmill.filters import rle
from maskmill.filters.upsampling import Upsampling


class Measures(NamedTuple):
    """What the filters need to know of N masks."""

    stability_score: Tensor  # (N,) float32; NaN where no pixel is above the lower threshold
    area: Tensor  # (N,) int64, pixels
    boxes: Tensor  # (N, 4) int64, inclusive XYXY in pixels of the crop; zeros for an empty mask
    inner_boxes: Tensor  # (N, 4) int64, those within `boxes` in any case; x0 > x1 where there is none


# As operators of PyTorch, these may be implemented by subclasses of Tensor (`__torch_function__`).
@wrap_torch_function(lambda logits_Khw, *_, **__: (logits_Khw,))
def measure(logits_Khw: Tensor, upsampling: Upsampling, offset: float, margin: float = 0.0) -> Measures:
    """Measures of the masks, the pixels whose logit is above 0.

    The stability score is the IoU of the masks at the thresholds `offset` and `-offset`. One lies inside the other, so
    the IoU is the ratio of their areas. `margin` bounds the error of the logits: the box of the exact mask lies between
    `inner_boxes` and `boxes`.
    """
    # For an integer every kernel would be compiled once more.
    counts_K3, boxes_K24 = _kernels(logits_Khw).measure(logits_Khw, upsampling, float(offset), float(margin))
    above_K, below_K, area_K = counts_K3.unbind(dim=1)
    outer_K4, inner_K4 = boxes_K24.unbind(dim=1)
    return Measures(above_K / below_K, area_K, outer_K4 * (outer_K4[:, 2:3] >= 0), inner_K4)


@wrap_torch_function(lambda logits_Khw, *_, **__: (logits_Khw,))
def encode(logits_Khw: Tensor, upsampling: Upsampling, corner: tuple[int, int], height: int, width: int) -> list[bytes]:
    """The `counts` of the masks in an image of (height, width) pixels whose crop begins at `corner` (x, y)."""
    offset = corner[0] * height + corner[1]
    return rle.from_changes(_kernels(logits_Khw).find_changes(logits_Khw, upsampling, offset, height), height * width)


def _kernels(logits_Khw: Tensor) -> ModuleType:
    # Imported where they are needed: a machine without a GPU need not have Triton.
    if logits_Khw.is_cuda:
        from maskmill.filters import mask_measure_gpu as kernels
    else:
        from maskmill.filters import mask_measure_cpu as kernels
    return kernels
