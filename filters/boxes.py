"""Boxes of masks, and the test for boxes cut off by a crop.

Boxes are XYXY in pixels and inclusive: x1, y1 are the last column and row of the mask.
Shapes: N masks, H W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

EDGE_TOLERANCE = 20  # pixels


def masks_to_boxes(masks_KHW: Tensor) -> Tensor:
    """Inclusive XYXY boxes (N, 4) int64 of boolean masks; zeros for an empty mask."""
    # The maximum of bytes runs ten times faster than `any` of booleans.
    bytes_KHW = masks_KHW.view(torch.uint8)
    x0_K, x1_K = _first_and_last(bytes_KHW.amax(dim=1))
    y0_K, y1_K = _first_and_last(bytes_KHW.amax(dim=2))
    return torch.stack([x0_K, y0_K, x1_K, y1_K], dim=1)


def _first_and_last(occupied_KF: Tensor) -> tuple[Tensor, Tensor]:
    length = occupied_KF.shape[1]
    first_K = occupied_KF.argmax(dim=1)
    last_K = length - 1 - occupied_KF.flip(1).argmax(dim=1)
    # In a row of zeros argmax finds index 0 from either end.
    return first_K, last_K * occupied_KF.amax(dim=1)


def least_iou(boxes_K4: Tensor, inner_E4: Tensor, outer_E4: Tensor) -> Tensor:
    """(K, N) the least IoU with K boxes that N others can have, each of which lies between an inner and an outer one.

    Areas are those of NMS: without the inclusive pixel. NaN where neither box has one.
    """
    a_K4, inner_E4, outer_E4 = boxes_K4.float(), inner_E4.float(), outer_E4.float()
    area_K1, area_1E = _areas(a_K4)[:, None], _areas(outer_E4)[None]
    return _overlaps(a_K4, inner_E4) / (area_K1 + area_1E - _overlaps(a_K4, outer_E4))


def _areas(boxes_E4: Tensor) -> Tensor:
    return (boxes_E4[:, 2:] - boxes_E4[:, :2]).prod(dim=1)


def _overlaps(boxes_K4: Tensor, boxes_E4: Tensor) -> Tensor:
    a_K14, b_1E4 = boxes_K4[:, None], boxes_E4[None]
    corner_KE2 = torch.maximum(a_K14[..., :2], b_1E4[..., :2])
    return (torch.minimum(a_K14[..., 2:], b_1E4[..., 2:]) - corner_KE2).clamp(min=0).prod(dim=-1)


def near_crop_edge(
    boxes_K4: Tensor, crop_boxes_K4: Tensor, height: int, width: int, inner_boxes_K4: Tensor | None = None
) -> Tensor:
    """Which boxes (N,) come within 20 px of an edge of their crop that is not an edge of the image.

    Such a mask is probably cut off, and another crop sees all of it. The published test goes by coordinate:
    each of the four is compared with the same coordinate of the crop and of the image.

    Args:
        boxes_K4: inclusive XYXY in image pixels.
        crop_boxes_K4: half-open XYXY in image pixels, the crop each mask comes from.
        height, width: of the image, in pixels.
        inner_boxes_K4: where the boxes are only known to lie between these and `boxes_K4`: only those are near an edge
            that are so in any case.

    Source: Kirillov et al. 2023, Appendix B; `is_box_near_crop_edge` of segment-anything.
    """
    image_box_4 = torch.tensor([0, 0, width, height]).to(boxes_K4.device, non_blocking=True)
    # A box between two is at least as near to its crop's edge as the inner, and at most as near to the image's as the
    # outer one.
    inner_boxes_K4 = boxes_K4 if inner_boxes_K4 is None else inner_boxes_K4
    near_crop_K4 = (inner_boxes_K4 - crop_boxes_K4).abs() <= EDGE_TOLERANCE
    near_image_K4 = (boxes_K4 - image_box_4).abs() <= EDGE_TOLERANCE
    return (near_crop_K4 & ~near_image_K4).any(dim=1)


def xyxy_to_xywh(boxes_K4: Tensor) -> Tensor:
    """XYWH (N, 4) with w = x1 - x0. Of an inclusive box that is one short of the pixel count, as in SA-1B."""
    return torch.cat([boxes_K4[:, :2], boxes_K4[:, 2:] - boxes_K4[:, :2]], dim=1)


def xywh_to_xyxy(boxes_K4: Tensor) -> Tensor:
    """Undoes `xyxy_to_xywh`."""
    return torch.cat([boxes_K4[:, :2], boxes_K4[:, :2] + boxes_K4[:, 2:]], dim=1)
