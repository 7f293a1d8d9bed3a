"""Object proposals of a model: the masks of a dense grid of clicks, filtered by NMS only.

Shapes: N points, M masks per point (the single mask first), K masks, h w low-resolution logits, H W pixels.
Source: Kirillov et al. 2023, Appendix D.3.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskmill.filters import mask_measure
from maskmill.filters.nms import nms
from maskmill.model.network import Network
from maskmill.model.preprocess import preprocess
from maskmill.model.prompts import AMBIGUITY_MASKS, choose
from maskmill.pipeline.prompts import square_grid
from maskmill.pipeline.upsampling import crop_upsampling

POINTS_PER_SIDE = 64
NMS_THRESHOLD = 0.9
STABILITY_OFFSET = 1.0
POINTS_PER_BATCH = 8  # the activations fit into the caches of a CPU
BLOCK_BYTES = 4 * 2**20  # bytes of logits at image size that are computed at once


@dataclass(frozen=True, eq=False)
class Candidates:
    """K masks of one image."""

    rles: tuple[bytes, ...]  # COCO's compressed counts
    score_K: NDArray[np.float64]  # the mean of predicted IoU and stability


@torch.inference_mode()
def find_candidates(network: Network, pixels_HW3: NDArray[np.uint8], points_per_side: int, limit: int) -> Candidates:
    """The `limit` masks with the highest scores, best first, after NMS by predicted IoU.

    Empty masks are left out. The paper uses POINTS_PER_SIDE.
    """
    height, width = pixels_HW3.shape[:2]
    upsampling = crop_upsampling(network.config, height, width)
    counts: list[bytes] = []
    boxes, scores = [torch.empty(0, 4, dtype=torch.int64)], [torch.empty(0, 2, dtype=torch.float64)]
    for logits_Khw, iou_K in grid_logits(network, pixels_HW3, points_per_side):
        measures = mask_measure.measure(logits_Khw, upsampling, STABILITY_OFFSET)
        rows = measures.area.nonzero()[:, 0]
        counts += mask_measure.encode(logits_Khw[rows], upsampling, (0, 0), height, width)
        boxes.append(measures.boxes[rows].cpu())
        scores.append(torch.stack([iou_K[rows], measures.stability_score[rows]], dim=1).double().cpu())
    boxes_K4, scores_K2 = torch.cat(boxes), torch.cat(scores)
    kept = nms(boxes_K4, scores_K2[:, 0], NMS_THRESHOLD)
    mean_K = scores_K2[kept].mean(dim=1)
    best = mean_K.argsort(descending=True, stable=True)[:limit]
    return Candidates(tuple(counts[i] for i in kept[best].tolist()), mean_K[best].numpy())


@torch.inference_mode()
def grid_logits(
    network: Network, pixels_HW3: NDArray[np.uint8], points_per_side: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits (K, h, w) and predicted IoU (K,) of the three masks of each grid point, in batches of points."""
    height, width = pixels_HW3.shape[:2]
    frame = network.config.frame(height, width)
    embedding = network.encode_images(preprocess(pixels_HW3, network.config)[None].to(network.device))
    points_P2 = torch.from_numpy(square_grid(points_per_side) * (width, height)).to(network.device)
    for points_N2 in frame.to_input(points_P2).split(POINTS_PER_BATCH):
        decoded = network.decode_points(embedding, points_N2)
        keep_NM = choose(AMBIGUITY_MASKS, decoded.predicted_iou_NM)
        yield network.decode_masks(decoded, keep_NM), decoded.predicted_iou_NM[keep_NM]


def image_logits(network: Network, logits_Khw: Tensor, height: int, width: int) -> Iterator[Tensor]:
    """The logits at image size, in blocks of masks (k, H, W) to save memory."""
    frame = network.config.frame(height, width)
    block = max(1, BLOCK_BYTES // (4 * (frame.input_size**2 + height * width)))
    for logits_khw in logits_Khw.split(block):
        yield frame.to_image_logits(logits_khw)
