"""Zero-shot edge detection: the edges of the masks that a model predicts for a grid of clicks.

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
from maskmill.model.network import Network
from maskmill.pipeline.upsampling import crop_upsampling

POINTS_PER_SIDE = 16
NMS_THRESHOLD = 0.7  # the default of the mask generator: the paper does not state one

_SMOOTHING = 2.0  # pixels: the scale at which an edge has a direction
_SLACK = 1.01  # an edge pixel may be this much weaker than its neighbours across the edge


def edge_map(network: Network, pixels_HW3: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Edge strength (H, W) of an RGB image, 0 to 1, thinned."""
    height, width = pixels_HW3.shape[:2]
    return thin_edges(mask_edges(_probabilities(network, pixels_HW3), height, width))


def mask_edges(probabilities: Iterable[NDArray[np.float32]], height: int, width: int) -> NDArray[np.float32]:
    """Edge strength (H, W), 0 to 1, from the probability maps (H, W) of an image's masks.

    The strength is the gradient magnitude of a map at the pixels just outside its mask, and the maximum over masks. It
    is 0 everywhere if no mask has an edge inside the image.
    """
    strongest_HW = np.zeros((height, width), np.float32)
    for probability_HW in probabilities:
        mask_HW = (probability_HW > 0.5).view(np.uint8)
        x, y, w, h = cv2.boundingRect(mask_HW)
        # A margin of two pixels: one for the outside pixels, one for the gradient filter.
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
    """Non-maximum suppression: the edges (H, W) without pixels that are weaker than a neighbour across the edge.

    Source: Canny, "A Computational Approach to Edge Detection", 1986.
    """
    smooth_HW = cv2.GaussianBlur(edges_HW, (0, 0), _SMOOTHING)
    dy_HW, dx_HW = np.gradient(smooth_HW)
    dxy_HW, dxx_HW = np.gradient(dx_HW)
    dyy_HW = np.gradient(dy_HW, axis=0)
    # The direction across the edge is the eigenvector of the Hessian's eigenvalue with the largest magnitude.
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
def _probabilities(network: Network, pixels_HW3: NDArray[np.uint8]) -> Iterator[NDArray[np.float32]]:
    """The probability maps (H, W) of the masks that NMS by predicted IoU keeps, a few in memory at a time."""
    height, width = pixels_HW3.shape[:2]
    logits, ious = zip(*grid_logits(network, pixels_HW3, POINTS_PER_SIDE), strict=True)
    logits_Khw = torch.cat(logits)
    measures = mask_measure.measure(logits_Khw, crop_upsampling(network.config, height, width), offset=0)
    kept = nms(measures.boxes, torch.cat(ious), NMS_THRESHOLD)
    for logits_kHW in image_logits(network, logits_Khw[kept], height, width):
        yield from logits_kHW.sigmoid().float().cpu().numpy()
