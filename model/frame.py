"""One image size and one network input: how the image is resized into it, and points and logits between the two.

The image is scaled so that its longest side is the input's side, and padded at the right and bottom.

Shapes: H W image side in pixels, S input side in pixels, N masks, h w side of a mask in logit pixels or of the resized
image in input pixels.
Source: `utils/transforms.py` and `modeling/sam.py` of segment-anything; results are equal to the bit.
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

    @property
    def resized(self) -> tuple[int, int]:
        """(height, width) of the image in input pixels."""
        scale = self.input_size / max(self.height, self.width)
        # At least one pixel: the released code fails on an image more than 2 * input_size times longer than wide.
        return max(1, int(self.height * scale + 0.5)), max(1, int(self.width * scale + 0.5))

    def resize(self, pixels_HW3: NDArray[np.uint8]) -> Tensor:
        """The image at the scale of the input, without padding: (h, w, 3) uint8 on the CPU."""
        height, width = self.resized
        # PIL's filter widens as it shrinks (antialiasing), and its result is uint8: what the weights were trained on.
        resized = Image.fromarray(pixels_HW3).resize((width, height), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(resized))

    def to_input(self, xy: Tensor) -> Tensor:
        """Points (..., 2) from image pixels to input pixels."""
        height, width = self.resized
        scale = torch.tensor([width / self.width, height / self.height], dtype=xy.dtype)
        return xy * scale.to(xy.device, non_blocking=True)

    def to_image_logits(self, logits_Khw: Tensor) -> Tensor:
        """Mask logits (N, H, W) of the image from the decoder's low-resolution ones.

        In two bilinear steps, as published: to the input's size, and without its padding to the image's.
        """
        height, width = self.resized
        x_K1SS = F.interpolate(logits_Khw[:, None], [self.input_size] * 2, mode="bilinear", align_corners=False)
        x_K1rc = x_K1SS[..., :height, :width]
        return F.interpolate(x_K1rc, (self.height, self.width), mode="bilinear", align_corners=False)[:, 0]
