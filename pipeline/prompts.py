"""Where to look and where to click: crops of the image and the grid of points in each.

Source: Kirillov et al. 2023, Appendix B; `build_all_layer_point_grids` and `generate_crop_boxes` of
segment-anything.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from maskmill.pipeline.config import GeneratorConfig

Box = tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class View:
    """One crop of the image and the clicks in it."""

    crop_box: Box  # half-open XYXY in image pixels
    points_P2: NDArray[np.float64]  # XY in pixels of the crop

    @property
    def height(self) -> int:
        """Pixels."""
        return self.crop_box[3] - self.crop_box[1]

    @property
    def width(self) -> int:
        """Pixels."""
        return self.crop_box[2] - self.crop_box[0]


def plan_views(height: int, width: int, config: GeneratorConfig) -> list[View]:
    """The whole image first, then the crops, layer by layer."""
    views: list[View] = []
    for layer, grid_P2 in enumerate(point_grids(config)):
        for x0, y0, x1, y1 in crop_boxes(height, width, layer, config.crop_overlap_ratio):
            views.append(View((x0, y0, x1, y1), grid_P2 * np.array([x1 - x0, y1 - y0])))
    return views


def point_grids(config: GeneratorConfig) -> list[NDArray[np.float64]]:
    """The points (P, 2) of each layer, XY in [0, 1] of the crop."""
    layers = range(config.crop_n_layers + 1)
    if config.point_grids is not None:
        return [config.point_grids[layer] for layer in layers]
    assert config.points_per_side is not None
    factor = config.crop_n_points_downscale_factor
    return [square_grid(config.points_per_side // factor**layer) for layer in layers]


def square_grid(points_per_side: int) -> NDArray[np.float64]:
    """The centres (P, 2) of a square's cells, XY in [0, 1], row by row."""
    centres = (np.arange(points_per_side) + 0.5) / points_per_side
    x, y = np.meshgrid(centres, centres)
    return np.stack([x, y], axis=-1).reshape(-1, 2)


def crop_boxes(height: int, width: int, layer: int, overlap_ratio: float) -> list[Box]:
    """The crops of one layer, 2^layer along each side, column by column; layer 0 is the whole image.

    Neighbours overlap by `overlap_ratio` of the image's short side in layer 1, by half as much in each
    further layer. A crop that would hold no pixel, as in an image narrower than its crops are many, is
    left out.
    """
    per_side = 2**layer
    overlap = int(overlap_ratio * min(height, width) * (2 / per_side))
    crop_width = math.ceil((overlap * (per_side - 1) + width) / per_side)
    crop_height = math.ceil((overlap * (per_side - 1) + height) / per_side)
    starts = product(
        [(crop_width - overlap) * i for i in range(per_side)],
        [(crop_height - overlap) * i for i in range(per_side)],
    )
    boxes = [(x0, y0, min(x0 + crop_width, width), min(y0 + crop_height, height)) for x0, y0 in starts]
    return [box for box in boxes if box[0] < box[2] and box[1] < box[3]]
