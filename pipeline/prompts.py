"""Plans the prompts of an image: its crops, and a grid of points in each crop.

Shapes: P points of a view.

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
    """One crop of the image and its point prompts."""

    crop_box: Box  # half-open XYXY in image pixels
    points_P2: NDArray[np.float64]  # XY in pixels of the crop

    @property
    def height(self) -> int:
        """Height of the crop in pixels."""
        return self.crop_box[3] - self.crop_box[1]

    @property
    def width(self) -> int:
        """Width of the crop in pixels."""
        return self.crop_box[2] - self.crop_box[0]


def plan_views(height: int, width: int, config: GeneratorConfig) -> list[View]:
    """The views of an image of (height, width) pixels: the whole image, then the crops of each layer."""
    views: list[View] = []
    for layer, grid_P2 in enumerate(point_grids(config)):
        for x0, y0, x1, y1 in crop_boxes(height, width, layer, config.crop_overlap_ratio):
            views.append(View((x0, y0, x1, y1), grid_P2 * np.array([x1 - x0, y1 - y0])))
    return views


def point_grids(config: GeneratorConfig) -> list[NDArray[np.float64]]:
    """The points (P, 2) of each crop layer, XY as fractions of the crop."""
    layers = range(config.crop_n_layers + 1)
    if config.point_grids is not None:
        return [config.point_grids[layer] for layer in layers]
    assert config.points_per_side is not None
    factor = config.crop_n_points_downscale_factor
    return [square_grid(config.points_per_side // factor**layer) for layer in layers]


def square_grid(points_per_side: int) -> NDArray[np.float64]:
    """The cell centres (P, 2) of a square grid, XY in [0, 1], row by row."""
    centres = (np.arange(points_per_side) + 0.5) / points_per_side
    x, y = np.meshgrid(centres, centres)
    return np.stack([x, y], axis=-1).reshape(-1, 2)


def crop_boxes(height: int, width: int, layer: int, overlap_ratio: float) -> list[Box]:
    """The crops of one layer, 2^layer along each side, column by column. Layer 0 is the whole image.

    Neighbouring crops overlap by `overlap_ratio` of the short side of the image in layer 1, and by half of the previous
    overlap in each further layer. Empty crops, which occur if the image has fewer pixels than crops along a side, are
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
