"""Conversions between an image and the square input of the network: pixels, points and mask logits.

The image is scaled so that its longest side equals the side of the input, and padded at the right and bottom.

Shapes: K masks, H W image in pixels, r c resized image in input pixels, S input side, h w low-resolution logits.
Source: `utils/transforms.py` and `modeling/sam.py` of segment-anything; the results are bit-identical.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class Frame:
    """An image of `height` x `width` pixels in a square input of `input_size` x `input_size` pixels."""

    height: int
    width: int
    input_size: int

    @staticmethod
    def of(pixels_HW3: NDArray[np.uint8], input_size: int) -> Frame:
        """The frame of an image (H, W, 3)."""
        height, width, _ = pixels_HW3.shape
        return Frame(height, width, input_size)

    @property
    def resized(self) -> tuple[int, int]:
        """(height, width) of the image in input pixels."""
        scale = self.input_size / max(self.height, self.width)
        # At least one pixel: the released code fails on an image more than 2 * input_size times longer than wide.
        return max(1, int(self.height * scale + 0.5)), max(1, int(self.width * scale + 0.5))

    def resize(self, pixels_HW3: NDArray[np.uint8]) -> Tensor:
        """The image at the scale of the input, without padding: (r, c, 3) uint8 on the CPU."""
        height, width = self.resized
        # The weights were trained on uint8 images that PIL resized with antialiasing.
        resized = Image.fromarray(pixels_HW3).resize((width, height), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(resized))

    def to_input(self, xy: Tensor) -> Tensor:
        """Points (..., 2) from image pixels to input pixels."""
        height, width = self.resized
        scale = torch.tensor([width / self.width, height / self.height], dtype=xy.dtype)
        return xy * scale.to(xy.device, non_blocking=True)

    def to_image_logits(self, logits_Khw: Tensor) -> Tensor:
        """Upsamples low-resolution logits to (K, H, W) logits of the image.

        Two bilinear steps, as published: to the input size, then, without the padding, to the image size.
        """
        height, width = self.resized
        x_K1SS = F.interpolate(logits_Khw[:, None], [self.input_size] * 2, mode="bilinear", align_corners=False)
        x_K1rc = x_K1SS[..., :height, :width]
        return F.interpolate(x_K1rc, (self.height, self.width), mode="bilinear", align_corners=False)[:, 0]
