"""Boxes of masks, and the test for masks that a crop cuts off.

Boxes are XYXY in pixels and inclusive: x1, y1 are the last column and row of the mask.
Shapes: K masks, E other masks, H W image in pixels, F rows or columns of an image.
"""

from __future__ import annotations

import torch
from torch import Tensor

EDGE_TOLERANCE = 20  # pixels


def masks_to_boxes(masks_KHW: Tensor) -> Tensor:
    """Inclusive XYXY boxes (K, 4) int64 of boolean masks; zeros for an empty mask."""
    # The maximum of bytes is ten times faster than `any` of booleans.
    bytes_KHW = masks_KHW.view(torch.uint8)
    x0_K, x1_K = _first_and_last(bytes_KHW.amax(dim=1))
    y0_K, y1_K = _first_and_last(bytes_KHW.amax(dim=2))
    return torch.stack([x0_K, y0_K, x1_K, y1_K], dim=1)


def _first_and_last(occupied_KF: Tensor) -> tuple[Tensor, Tensor]:
    length = occupied_KF.shape[1]
    first_K = occupied_KF.argmax(dim=1)
    last_K = length - 1 - occupied_KF.flip(1).argmax(dim=1)
    # argmax of a row of zeros is 0 from either end, so an empty mask gets 0 and 0.
    return first_K, last_K * occupied_KF.amax(dim=1)


def least_iou(boxes_K4: Tensor, inner_E4: Tensor, outer_E4: Tensor) -> Tensor:
    """A lower bound (K, E) for the IoU of K boxes with E boxes, each known to lie between its inner and outer box.

    Areas are computed as in NMS, without the inclusive pixel. NaN if both areas are 0.
    """
    a_K4, inner_E4, outer_E4 = boxes_K4.float(), inner_E4.float(), outer_E4.float()
    area_K1, area_1E = _areas(a_K4)[:, None], _areas(outer_E4)[None]
    return _intersections(a_K4, inner_E4) / (area_K1 + area_1E - _intersections(a_K4, outer_E4))


def _areas(boxes_E4: Tensor) -> Tensor:
    return (boxes_E4[:, 2:] - boxes_E4[:, :2]).prod(dim=1)


def _intersections(boxes_K4: Tensor, boxes_E4: Tensor) -> Tensor:
    a_K14, b_1E4 = boxes_K4[:, None], boxes_E4[None]
    corner_KE2 = torch.maximum(a_K14[..., :2], b_1E4[..., :2])
    return (torch.minimum(a_K14[..., 2:], b_1E4[..., 2:]) - corner_KE2).clamp(min=0).prod(dim=-1)


def near_crop_edge(
    boxes_K4: Tensor, crop_boxes_K4: Tensor, height: int, width: int, inner_boxes_K4: Tensor | None = None
) -> Tensor:
    """Boolean (K,): whether a box is within 20 pixels of an edge of its crop that is not an edge of the image.

    The crop probably cuts off such a mask, and another crop shows all of it. As in the published test, each coordinate
    is compared with the same coordinate of the crop and of the image.

    Args:
        boxes_K4: inclusive XYXY in image pixels.
        crop_boxes_K4: half-open XYXY in image pixels, the crop of each mask.
        height, width: of the image, in pixels.
        inner_boxes_K4: given if the exact boxes are unknown and lie between these and `boxes_K4`. The result is then
            true only if it is true for every box in between.

    Source: Kirillov et al. 2023, Appendix B; `is_box_near_crop_edge` of segment-anything.
    """
    image_box_4 = torch.tensor([0, 0, width, height]).to(boxes_K4.device, non_blocking=True)
    # The exact box is at least as near to the edge of its crop as the inner box, and at most as near to the edge of the
    # image as the outer box.
    inner_boxes_K4 = boxes_K4 if inner_boxes_K4 is None else inner_boxes_K4
    near_crop_K4 = (inner_boxes_K4 - crop_boxes_K4).abs() <= EDGE_TOLERANCE
    near_image_K4 = (boxes_K4 - image_box_4).abs() <= EDGE_TOLERANCE
    return (near_crop_K4 & ~near_image_K4).any(dim=1)


def xyxy_to_xywh(boxes_K4: Tensor) -> Tensor:
    """XYWH (K, 4) with w = x1 - x0, as in SA-1B: one less than the width of an inclusive box in pixels."""
    return torch.cat([boxes_K4[:, :2], boxes_K4[:, 2:] - boxes_K4[:, :2]], dim=1)


def xywh_to_xyxy(boxes_K4: Tensor) -> Tensor:
    """The inverse of `xyxy_to_xywh`."""
    return torch.cat([boxes_K4[:, :2], boxes_K4[:, :2] + boxes_K4[:, 2:]], dim=1)
