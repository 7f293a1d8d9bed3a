"""Image pixels to the network's input, and coordinates and logits between the two frames.

Shapes: H W image side in pixels, S input side in pixels, N masks, h w side of a mask in logit pixels or of a resized
image in input pixels.
Source: `utils/transforms.py` and `modeling/sam.py` of segment-anything, whose numbers these equal exactly.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from maskmill.model.config import SamConfig


def resized_size(height: int, width: int, image_size: int) -> tuple[int, int]:
    """(height, width) in input pixels of an image scaled so that its longest side is `image_size`."""
    scale = image_size / max(height, width)
    # At least one pixel: the released code cannot take an image more than 2 * image_size times longer than wide.
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def preprocess(pixels_HW3: NDArray[np.uint8], config: SamConfig) -> Tensor:
    """The network's input (3, S, S), float32, of an RGB image."""
    return normalise(resize(pixels_HW3, config.image_size), config)


def resize(pixels_HW3: NDArray[np.uint8], image_size: int) -> Tensor:
    """The image with its longest side at `image_size`, (resized height, resized width, 3) uint8 on the CPU."""
    height, width = resized_size(pixels_HW3.shape[0], pixels_HW3.shape[1], image_size)
    # PIL's filter widens as it shrinks (antialiasing), and its result is uint8: what the weights were trained on.
    resized = Image.fromarray(pixels_HW3).resize((width, height), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized))


def normalise(resized_hw3: Tensor, config: SamConfig) -> Tensor:
    """The network's input (3, S, S), float32 on the same device: zero-padded at the right and bottom."""
    S, (height, width, _) = config.image_size, resized_hw3.shape
    mean_311 = torch.tensor(config.pixel_mean).view(3, 1, 1).to(resized_hw3.device, non_blocking=True)
    std_311 = torch.tensor(config.pixel_std).view(3, 1, 1).to(resized_hw3.device, non_blocking=True)
    return F.pad((resized_hw3.permute(2, 0, 1) - mean_311) / std_311, (0, S - width, 0, S - height))


def to_input_frame(xy: Tensor, height: int, width: int, image_size: int) -> Tensor:
    """Points (..., 2) from pixels of a (height, width) image to pixels of the network's input."""
    resized_height, resized_width = resized_size(height, width, image_size)
    scale = torch.tensor([resized_width / width, resized_height / height], dtype=xy.dtype)
    return xy * scale.to(xy.device, non_blocking=True)


def to_image_logits(logits_Nhw: Tensor, height: int, width: int, image_size: int) -> Tensor:
    """Mask logits (N, height, width) of the image from the decoder's low-resolution ones.

    In two bilinear steps, as published: to the input's size, and without its padding to the image's.
    """
    resized_height, resized_width = resized_size(height, width, image_size)
    x_N1SS = F.interpolate(logits_Nhw[:, None], (image_size, image_size), mode="bilinear", align_corners=False)
    x_N1hw = x_N1SS[..., :resized_height, :resized_width]
    return F.interpolate(x_N1hw, (height, width), mode="bilinear", align_corners=False)[:, 0]
