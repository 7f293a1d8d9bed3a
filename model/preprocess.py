"""RGB pixels to the tensor that the image encoder takes.

Shapes: H W image side in pixels, S input side in pixels, h w side of the resized image in input pixels.
Source: `modeling/sam.py` of segment-anything, whose numbers these equal exactly.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from maskmill.model.config import SamConfig
from maskmill.model.frame import Frame


def preprocess(pixels_HW3: NDArray[np.uint8], config: SamConfig) -> Tensor:
    """The network's input (3, S, S), float32, of an RGB image."""
    frame = Frame(*pixels_HW3.shape[:2], config.image_size)
    return normalise(frame.resize(pixels_HW3), config)


def normalise(resized_rc3: Tensor, config: SamConfig) -> Tensor:
    """The network's input (3, S, S), float32 on the same device: zero-padded at the right and bottom."""
    S, (height, width, _) = config.image_size, resized_rc3.shape
    mean_311 = torch.tensor(config.pixel_mean).view(3, 1, 1).to(resized_rc3.device, non_blocking=True)
    std_311 = torch.tensor(config.pixel_std).view(3, 1, 1).to(resized_rc3.device, non_blocking=True)
    return F.pad((resized_rc3.permute(2, 0, 1) - mean_311) / std_311, (0, S - width, 0, S - height))
