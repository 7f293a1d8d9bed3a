"""Conversions between an image and the square input of the network: pixels, points and mask logits.

The image is scaled so that its longest side equals the side of the input, and padded at the right and bottom. For SAM 2
it is stretched to the whole input instead.

Shapes: K masks, H W image in pixels, r c resized image in input pixels, S input side, h w low-resolution logits.
Source: `utils/transforms.py` and `modeling/sam.py` of segment-anything, `utils/transforms.py` of sam2; the results are
bit-identical.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

ROWS_PER_BAND = 512


@dataclass(frozen=True)
class Frame:
    """An image of `height` x `width` pixels in a square input of `input_size` x `input_size` pixels."""

    height: int
    width: int
    input_size: int
    square: bool = False  # whether the image is stretched to the whole input

    @staticmethod
    def of(pixels_HW3: NDArray[np.uint8], input_size: int) -> Frame:
        """The frame of an image (H, W, 3)."""
        height, width, _ = pixels_HW3.shape
        return Frame(height, width, input_size)

    @property
    def resized(self) -> tuple[int, int]:
        """(height, width) of the image in input pixels."""
        if self.square:
            return self.input_size, self.input_size
        scale = self.input_size / max(self.height, self.width)
        # At least one pixel: the released code fails on an image more than 2 * input_size times longer than wide.
        return max(1, int(self.height * scale + 0.5)), max(1, int(self.width * scale + 0.5))

    def resize(self, pixels_HW3: NDArray[np.uint8]) -> Tensor:
        """The image at the scale of the input, without padding: (r, c, 3) on the CPU, uint8 or, if square, float32."""
        if self.square:
            return self._stretch(pixels_HW3)
        height, width = self.resized
        # The weights were trained on uint8 images that PIL resized with antialiasing.
        resized = Image.fromarray(pixels_HW3).resize((width, height), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(resized))

    def _stretch(self, pixels_HW3: NDArray[np.uint8]) -> Tensor:
        # Columns first, in bands of rows: all rows in float32 would take four times the memory of the image.
        S, bands = self.input_size, []
        for first in range(0, self.height, ROWS_PER_BAND):
            band_rW3 = torch.from_numpy(pixels_HW3[first : first + ROWS_PER_BAND].astype(np.float32))
            bands.append(_interpolate(band_rW3.permute(2, 0, 1)[None], (len(band_rW3), S)))
        return _interpolate(torch.cat(bands, dim=2), (S, S))[0].permute(1, 2, 0).contiguous()

    def to_input(self, xy: Tensor) -> Tensor:
        """Points (..., 2) from image pixels to input pixels."""
        if self.square:
            size = torch.tensor([self.width, self.height], dtype=torch.float32).to(xy.device, non_blocking=True)
            return xy.float() / size * self.input_size
        height, width = self.resized
        scale = torch.tensor([width / self.width, height / self.height], dtype=xy.dtype)
        return xy * scale.to(xy.device, non_blocking=True)

    def to_image_logits(self, logits_Khw: Tensor) -> Tensor:
        """Upsamples low-resolution logits to (K, H, W) logits of the image.

        Two bilinear steps, as published: to the input size, then, without the padding, to the image size. One step if
        the image is stretched to the input.
        """
        if self.square:
            size = (self.height, self.width)
            return F.interpolate(logits_Khw[:, None], size, mode="bilinear", align_corners=False)[:, 0]
        height, width = self.resized
        x_K1SS = F.interpolate(logits_Khw[:, None], [self.input_size] * 2, mode="bilinear", align_corners=False)
        x_K1rc = x_K1SS[..., :height, :width]
        return F.interpolate(x_K1rc, (self.height, self.width), mode="bilinear", align_corners=False)[:, 0]


def _interpolate(images: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
