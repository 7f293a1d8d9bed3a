"""The low-resolution logits that a pixel of a crop is interpolated from, and their weights.

Shapes: S side of the network input in input pixels, H W crop in pixels, h w low-resolution logits.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Taps(NamedTuple):
    """One axis of a bilinear resize: pixel i is `near_weight[i] * x[near[i]] + far_weight[i] * x[far[i]]`."""

    near: NDArray[np.uint32]
    far: NDArray[np.uint32]
    near_weight: NDArray[np.float32]
    far_weight: NDArray[np.float32]


class Upsampling(NamedTuple):
    """The two bilinear steps of `model.frame.Frame.to_image_logits`: from h x w logits to the S x S input, then from
    the unpadded part of the input to the H x W crop.

    A pixel depends on at most three logits along each axis. Pixel rows `row_cells[i]` to `row_cells[i + 1]` depend on
    logit rows i, i + 1 and i + 2; likewise `column_cells`.
    """

    to_input: Taps  # S pixels, the same for both axes
    rows: Taps  # H pixels
    columns: Taps  # W pixels
    row_cells: NDArray[np.int64]  # (h + 1,)
    column_cells: NDArray[np.int64]  # (w + 1,)


@lru_cache(maxsize=64)  # the crops of an image have few sizes
def plan_upsampling(mask_size: int, image_size: int, resized: tuple[int, int], height: int, width: int) -> Upsampling:
    """The upsampling of `mask_size` x `mask_size` logits to a crop of (height, width) pixels.

    The crop was resized to `resized` (height, width) input pixels for the network.
    """
    to_input = linear_taps(mask_size, image_size)
    rows, columns = linear_taps(resized[0], height), linear_taps(resized[1], width)
    row_cells, column_cells = (
        np.searchsorted(to_input.near[axis.near], np.arange(mask_size + 1)) for axis in (rows, columns)
    )
    return Upsampling(to_input, rows, columns, row_cells, column_cells)


def linear_taps(size: int, new_size: int) -> Taps:
    """The taps of `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)`, bit-identical."""
    scale = np.float32(size) / np.float32(new_size)
    # torch uses a fused multiply-subtract with one rounding. In float64 the product is exact, so the result is the
    # same.
    position = (scale.astype(np.float64) * (np.arange(new_size) + 0.5) - 0.5).astype(np.float32)
    position = np.maximum(position, np.float32(0))
    near = position.astype(np.uint32)
    far_weight = np.clip(position - near.astype(np.float32), np.float32(0), np.float32(1))
    return Taps(near, np.minimum(near + 1, np.uint32(size - 1)), np.float32(1) - far_weight, far_weight)
