"""Composition of colours and alpha into an opaque RGB picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops


def rgb_picture(levels_HWC: NDArray[np.uint8]) -> Image.Image:
    """An RGB picture of grey (C = 1) or three colours (C = 3)."""
    return (
        Image.fromarray(levels_HWC) if levels_HWC.shape[2] == 3 else Image.fromarray(levels_HWC[..., 0]).convert("RGB")
    )


def over_white(colours: Image.Image, alpha: Image.Image, premultiplied: bool = False) -> Image.Image:
    """Composites RGB `colours` over white, as image viewers do; colours under full transparency are arbitrary.

    `alpha` (mode L) is ignored if it is zero everywhere, because some programs write an unused channel that way.
    """
    lowest, highest = alpha.getextrema()
    if highest == 0 or lowest == 255:
        return colours
    white = Image.new("RGB", colours.size, "white")
    if premultiplied:
        return ImageChops.add(colours, ImageChops.subtract(white, alpha.convert("RGB")))
    white.paste(colours, mask=alpha)
    return white
