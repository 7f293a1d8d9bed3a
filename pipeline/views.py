"""Intermediate results of the generator: resized views, and views encoded on the device.

Shapes: r c resized view in input pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from maskmill.model.embedding import ImageEmbedding
from maskmill.pipeline.prompts import View


class ResizedView(NamedTuple):
    """A view resized to the scale of the network input."""

    view: View
    pixels_rc3: Tensor  # uint8, on the CPU


@dataclass(frozen=True, eq=False)
class ResizedImage:
    """The size of an image and its resized views. The original pixels are not stored."""

    height: int  # of the image, in pixels
    width: int
    views: tuple[ResizedView, ...]  # in the order of `plan_views`


class EncodedView(NamedTuple):
    """A view with its embedding, and the size of its image in pixels."""

    view: View
    embedding: ImageEmbedding
    image_height: int
    image_width: int
