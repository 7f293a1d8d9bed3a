"""Colours and their opacity to an opaque RGB picture."""

from __future__ import annotations

from PIL import Image, ImageChops


def over_white(colours: Image.Image, alpha: Image.Image, premultiplied: bool = False) -> Image.Image:
    """RGB `colours` over white, as a viewer shows them: the colours that hide under transparency are arbitrary.

    `alpha` (mode L) that is zero everywhere is ignored: some programs write it for a channel that they do not use.
    """
    lowest, highest = alpha.getextrema()
    if highest == 0 or lowest == 255:
        return colours
    white = Image.new("RGB", colours.size, "white")
    if premultiplied:
        return ImageChops.add(colours, ImageChops.subtract(white, alpha.convert("RGB")))
    white.paste(colours, mask=alpha)
    return white
