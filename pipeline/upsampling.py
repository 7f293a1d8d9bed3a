"""Plans the upsampling of mask logits to a crop: converts a `Frame` of the model to an `Upsampling` of the filters."""

from __future__ import annotations

from maskmill.filters.upsampling import Upsampling, plan_upsampling
from maskmill.model.config import NetworkConfig


def crop_upsampling(config: NetworkConfig, height: int, width: int) -> Upsampling:
    """The upsampling from the logits of a network to its input crop of `height` x `width` pixels."""
    resized = config.frame(height, width).resized
    return plan_upsampling(config.mask_size, config.image_size, resized, height, width)
