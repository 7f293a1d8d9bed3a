"""Edges that a model sees without having been taught to: where the masks of a grid of clicks end.

Shapes: N points, M masks per point (the single mask first), K masks, h w low-resolution logits, H W pixels.
Source: Kirillov et al. 2023, Section 7.2 and Appendix D.2.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from maskmill.evaluation.candidates import grid_logits, image_logits
from maskmill.filters import mask_measure
from maskmill.filters.nms import nms
from maskmill.model.sam import Sam
from maskmill.pipeline.upsampling import crop_upsampling

POINTS_PER_SIDE = 16
NMS_THRESHOLD = 0.7  # the paper names none: the generator's

_SMOOTHING = 2.0  # pixels: the scale at which an edge has a direction
_SLACK = 1.01  # an edge pixel may be this much weaker than its neighbours across the edge


def edge_map(sam: Sam, pixels_HW3: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Edge strength (H, W) of an RGB image, 0 to 1, thinned."""
    height, width = pixels_HW3.shape[:2]
    return thin_edges(mask_edges(_probabilities(sam, pixels_HW3), height, width))


def mask_edges(probabilities: Iterable[NDArray[np.float32]], height: int, width: int) -> NDArray[np.float32]:
    """Edge strength (H, W), 0 to 1, from the probability maps (H, W) of an image's masks.

    The steepness of each map at the pixels just outside its mask; of several masks the strongest. All 0 where no mask
    ends in the image.
    """
    strongest_HW = np.zeros((height, width), np.float32)
    for probability_HW in probabilities:
        mask_HW = (probability_HW > 0.5).view(np.uint8)
        x, y, w, h = cv2.boundingRect(mask_HW)
        # The filter and the pixels just outside reach one further each.
        window = slice(max(0, y - 2), y + h + 2), slice(max(0, x - 2), x + w + 2)
        probability_hw, mask_hw = probability_HW[window], mask_HW[window]
        if w == 0:
            continue
        steepness_hw = np.hypot(cv2.Sobel(probability_hw, -1, 1, 0), cv2.Sobel(probability_hw, -1, 0, 1))
        outside_hw = cv2.dilate(mask_hw, _CROSS) > mask_hw
        np.maximum(strongest_HW[window], steepness_hw, out=strongest_HW[window], where=outside_hw)
    return strongest_HW / max(float(strongest_HW.max()), 1e-12)


_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))


def thin_edges(edges_HW: NDArray[np.float32]) -> NDArray[np.float32]:
    """The edges (H, W) without the pixels that are weaker than one of the two next to them across the edge.

    Source: Canny, "A Computational Approach to Edge Detection", 1986.
    """
    smooth_HW = cv2.GaussianBlur(edges_HW, (0, 0), _SMOOTHING)
    dy_HW, dx_HW = np.gradient(smooth_HW)
    dxy_HW, dxx_HW = np.gradient(dx_HW)
    dyy_HW = np.gradient(dy_HW, axis=0)
    # Across an edge is where it bends most: the eigenvector of the Hessian's largest eigenvalue, or of the lowest where
    # that is farther from 0.
    bends_down_HW = dxx_HW + dyy_HW < 0
    across_HW = (np.arctan2(2 * dxy_HW, dxx_HW - dyy_HW) + np.pi * bends_down_HW) / 2
    step_x, step_y = np.cos(across_HW).astype(np.float32), np.sin(across_HW).astype(np.float32)
    y_HW, x_HW = np.indices(edges_HW.shape, dtype=np.float32)
    highest_HW = np.maximum(
        cv2.remap(edges_HW, x_HW + step_x, y_HW + step_y, cv2.INTER_LINEAR),
        cv2.remap(edges_HW, x_HW - step_x, y_HW - step_y, cv2.INTER_LINEAR),
    )
    return np.where(edges_HW * _SLACK >= highest_HW, edges_HW, np.float32(0))


@torch.inference_mode()
def _probabilities(sam: Sam, pixels_HW3: NDArray[np.uint8]) -> Iterator[NDArray[np.float32]]:
    """The probability maps (H, W) of the masks that NMS by predicted IoU leaves; few of them in memory."""
    height, width = pixels_HW3.shape[:2]
    logits, ious = zip(*grid_logits(sam, pixels_HW3, POINTS_PER_SIDE), strict=True)
    logits_Khw = torch.cat(logits)
    measures = mask_measure.measure(logits_Khw, crop_upsampling(sam.config, height, width), offset=0)
    kept = nms(measures.boxes, torch.cat(ious), NMS_THRESHOLD)
    for logits_kHW in image_logits(sam, logits_Khw[kept], height, width):
        yield from logits_kHW.sigmoid().float().cpu().numpy()
