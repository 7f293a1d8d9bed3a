"""Everything a model proposes for an image: the masks of a dense grid of clicks, with no filter but NMS.

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

from filters import rle
from filters.nms import nms
from filters.scores import MASK_THRESHOLD, stability_score
from model.preprocess import preprocess, to_image_logits, to_input_frame
from model.sam import Sam
from pipeline.prompts import square_grid

POINTS_PER_SIDE = 64
NMS_THRESHOLD = 0.9
STABILITY_OFFSET = 1.0
POINTS_PER_BATCH = 8  # stays in a CPU's caches
BLOCK_BYTES = 4 * 2**20  # of logits at the image's size


@dataclass(frozen=True, eq=False)
class Candidates:
    """K masks of one image."""

    rles: tuple[bytes, ...]  # COCO's counts
    score_K: NDArray[np.float64]  # the mean of predicted IoU and stability


def find_candidates(sam: Sam, pixels_HW3: NDArray[np.uint8], limit: int) -> Candidates:
    """The `limit` masks with the highest scores, best first, of those that NMS by predicted IoU leaves.

    Masks without a pixel are none.
    """
    height, width = pixels_HW3.shape[:2]
    counts: list[bytes] = []
    rows: list[tuple[float, float]] = []
    for logits_1HW, predicted_iou in _grid_masks(sam, pixels_HW3):
        mask_HW = (logits_1HW[0] > MASK_THRESHOLD).cpu().numpy()
        if mask_HW.any():
            counts.append(rle.encode(mask_HW))
            rows.append((predicted_iou, float(stability_score(logits_1HW, STABILITY_OFFSET))))
    scores_K2 = torch.tensor(rows, dtype=torch.float64).reshape(-1, 2)
    boxes_K4 = torch.tensor([rle.bbox(c, height, width) for c in counts], dtype=torch.int64).reshape(-1, 4)
    boxes_K4[:, 2:] += boxes_K4[:, :2]
    kept = nms(boxes_K4, scores_K2[:, 0], NMS_THRESHOLD)
    mean_K = scores_K2[kept].mean(dim=1)
    best = mean_K.argsort(descending=True, stable=True)[:limit]
    return Candidates(tuple(counts[i] for i in kept[best].tolist()), mean_K[best].numpy())


@torch.inference_mode()
def _grid_masks(sam: Sam, pixels_HW3: NDArray[np.uint8]) -> Iterator[tuple[Tensor, float]]:
    """Logits (1, H, W) and predicted IoU of the three masks of every point; never many of them in memory."""
    height, width = pixels_HW3.shape[:2]
    size = sam.config.image_size
    embedding = sam.encode_images(preprocess(pixels_HW3, sam.config)[None].to(sam.device))
    points_P2 = torch.from_numpy(square_grid(POINTS_PER_SIDE) * (width, height)).to(sam.device)
    block = max(1, BLOCK_BYTES // (4 * (size**2 + height * width)))
    for points_N2 in points_P2.split(POINTS_PER_BATCH):
        decoded = sam.decode_points(embedding, to_input_frame(points_N2, height, width, size))
        keep_NM = torch.ones_like(decoded.predicted_iou_NM, dtype=torch.bool)
        keep_NM[:, 0] = False
        ious = iter(decoded.predicted_iou_NM[keep_NM].tolist())
        for logits_nhw in sam.decode_masks(decoded, keep_NM).split(block):
            for logits_1HW in to_image_logits(logits_nhw, height, width, size).split(1):
                yield logits_1HW, next(ious)
