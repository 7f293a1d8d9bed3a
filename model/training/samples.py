"""Sample images with predicted masks, for visual inspection during training: metrics alone can hide wrong masks.

Shapes: P clicks on one image, M masks per click, S input side, h w mask side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from maskmill.model.deepest_pixel import deepest_pixel
from maskmill.model.network import Network
from maskmill.model.prompts import best_ambiguity_mask
from maskmill.model.training.augment import LABEL_STRIDE, Example, fit
from maskmill.model.training.data import LabelledImage
from maskmill.model.training.prompts import list_segments, normalise

COLUMNS = 4
# RGB colours that can be distinguished on most images.
COLOURS = (
    (230, 25, 75),
    (60, 220, 75),
    (255, 225, 25),
    (0, 130, 250),
    (245, 130, 48),
    (240, 50, 230),
    (70, 240, 240),
    (255, 255, 255),
)


def write_sheet(network: Network, images: Sequence[LabelledImage], path: Path) -> None:
    """Writes a PNG contact sheet of images with clicks and the outlines of the masks with the highest predicted IoU."""
    pictures = [draw_answers(network, image) for image in images]
    columns = min(COLUMNS, len(pictures))
    pictures += [np.zeros_like(pictures[0])] * (-len(pictures) % columns)
    rows = [np.concatenate(pictures[i : i + columns], axis=1) for i in range(0, len(pictures), columns)]
    # `write_bytes` raises an OSError with the cause of a failure; `cv2.imwrite` only returns False.
    path.write_bytes(cv2.imencode(".png", np.concatenate(rows)[..., ::-1])[1].tobytes())


@torch.inference_mode()
def draw_answers(network: Network, image: LabelledImage) -> NDArray[np.uint8]:
    """Draws a click in each of the largest segments and the outline of its mask on the model input, (S, S, 3) RGB."""
    side = network.config.image_size
    example = fit(image, side)
    points_P2 = torch.tensor(_clicks(example), dtype=torch.float32, device=network.device)
    embedding = network.encode_images(normalise([example], network.config).to(network.device))
    decoded = network.decode_points(embedding, points_P2)
    first_PM = F.one_hot(best_ambiguity_mask(decoded.predicted_iou_NM), decoded.predicted_iou_NM.shape[1]).bool()
    logits_Phw = network.decode_masks(decoded, first_PM)
    masks_PSS = F.interpolate(logits_Phw[:, None].float(), (side, side), mode="bilinear")[:, 0] > 0
    picture = example.pixels_SS3.copy()
    thickness = math.ceil(side / 256)
    for mask_SS, point_2, colour in zip(masks_PSS.cpu().numpy(), points_P2.tolist(), COLOURS, strict=False):
        outlines, _ = cv2.findContours(mask_SS.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, outlines, -1, colour, thickness)
        cv2.circle(picture, (round(point_2[0]), round(point_2[1])), 2 * thickness, colour, -1)
    return picture


def _clicks(example: Example) -> list[tuple[float, float]]:
    """Returns (x, y) in input pixels at the centres of the largest segments of the first map, one per colour."""
    map_ss = example.maps_Ass[0]
    labels = [label for _, label in list_segments(map_ss[None])]
    labels.sort(key=lambda label: -np.count_nonzero(map_ss == label))
    middles = [deepest_pixel(map_ss == label)[0] for label in labels[: len(COLOURS)]]
    return [(LABEL_STRIDE * x + 0.5, LABEL_STRIDE * y + 0.5) for x, y in middles]
