"""Converts RGB pixels to the input tensor of the image encoder.

Shapes: H W image in pixels, r c resized image in input pixels, S input side in pixels.
Source: `modeling/sam.py` of segment-anything; the results are bit-identical.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from maskmill.model.config import NetworkConfig


def preprocess(pixels_HW3: NDArray[np.uint8], config: NetworkConfig) -> Tensor:
    """Resizes, normalises and pads an RGB image: (3, S, S) float32."""
    frame = config.frame(*pixels_HW3.shape[:2])
    return normalise(frame.resize(pixels_HW3), config)


def normalise(resized_rc3: Tensor, config: NetworkConfig) -> Tensor:
    """Normalises a resized image and zero-pads it at the right and bottom: (3, S, S) float32 on the same device."""
    S, (height, width, _) = config.image_size, resized_rc3.shape
    mean_311 = torch.tensor(config.pixel_mean).view(3, 1, 1).to(resized_rc3.device, non_blocking=True)
    std_311 = torch.tensor(config.pixel_std).view(3, 1, 1).to(resized_rc3.device, non_blocking=True)
    return F.pad((resized_rc3.permute(2, 0, 1) - mean_311) / std_311, (0, S - width, 0, S - height))
