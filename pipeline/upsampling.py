"""Plans the upsampling of mask logits to a crop: converts a `Frame` of the model to an `Upsampling` of the filters."""

from __future__ import annotations

from maskmill.filters.upsampling import Upsampling, plan_upsampling
from maskmill.model.config import NetworkConfig


def crop_upsampling(config: NetworkConfig, height: int, width: int) -> Upsampling:
    """The upsampling from the logits of a network to its input crop of `height` x `width` pixels."""
    frame = config.frame(height, width)
    if frame.square:  # a single step: the first one keeps the logits
        return plan_upsampling(config.mask_size, config.mask_size, (config.mask_size,) * 2, height, width)
    return plan_upsampling(config.mask_size, config.image_size, frame.resized, height, width)
