"""`ResizeLongestSide`: converts images, points and boxes to the model input.

Shapes: H W image side in pixels, h w side of the resized image.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from maskmill.model.frame import Frame


class ResizeLongestSide:
    """Scales images so that their longest side is `target_length`, and coordinates with them."""

    def __init__(self, target_length: int) -> None:
        self.target_length = target_length

    def apply_image(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resizes an image (H, W, 3) uint8 to (h, w, 3)."""
        return Frame.of(image, self.target_length).resize(image).numpy()

    def apply_coords(self, coords: NDArray, original_size: tuple[int, ...]) -> NDArray[np.float64]:
        """Scales points (..., 2) x, y; `original_size` is (H, W)."""
        return coords.astype(np.float64) * self._scale(original_size)

    def apply_boxes(self, boxes: NDArray, original_size: tuple[int, ...]) -> NDArray[np.float64]:
        """Scales boxes (B, 4) XYXY; `original_size` is (H, W)."""
        return self.apply_coords(boxes.reshape(-1, 2, 2), original_size).reshape(-1, 4)

    def apply_image_torch(self, image: Tensor) -> Tensor:
        """Resizes (B, 3, H, W) float to (B, 3, h, w). Pixels differ slightly from `apply_image`, used in training.

        The published method wrongly takes B and 3 as the image size; this one takes H and W.
        """
        size = self.get_preprocess_shape(image.shape[-2], image.shape[-1], self.target_length)
        return F.interpolate(image, size, mode="bilinear", align_corners=False, antialias=True)

    def apply_coords_torch(self, coords: Tensor, original_size: tuple[int, ...]) -> Tensor:
        """`apply_coords` in float32."""
        scale = torch.tensor(self._scale(original_size), dtype=torch.float32, device=coords.device)
        return coords.to(torch.float) * scale

    def apply_boxes_torch(self, boxes: Tensor, original_size: tuple[int, ...]) -> Tensor:
        """`apply_boxes` in float32."""
        return self.apply_coords_torch(boxes.reshape(-1, 2, 2), original_size).reshape(-1, 4)

    @staticmethod
    def get_preprocess_shape(oldh: int, oldw: int, long_side_length: int) -> tuple[int, int]:
        """The resized size (h, w) of an image of size (H, W)."""
        return Frame(oldh, oldw, long_side_length).resized

    def _scale(self, original_size: tuple[int, ...]) -> NDArray[np.float64]:
        height, width = original_size
        resized_height, resized_width = Frame(height, width, self.target_length).resized
        return np.array([resized_width / width, resized_height / height])
