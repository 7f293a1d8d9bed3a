"""How the pixels of a crop are interpolated from mask logits: the frame of the model in the terms of the filters."""

from __future__ import annotations

from maskmill.filters.upsampling import Upsampling, plan_upsampling
from maskmill.model.config import SamConfig
from maskmill.model.frame import Frame


def crop_upsampling(config: SamConfig, height: int, width: int) -> Upsampling:
    """From the logits of a network to a crop of `height` x `width` pixels that was its input."""
    resized = Frame(height, width, config.image_size).resized
    return plan_upsampling(config.mask_size, config.image_size, resized, height, width)
