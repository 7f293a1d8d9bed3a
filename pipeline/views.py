"""An image and its views on their way through the engine: resized on the CPU, then encoded on the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from maskmill.model.image_encoder import ImageEmbedding
from maskmill.pipeline.prompts import View


class ResizedView(NamedTuple):
    """A view at the scale of the network's input."""

    view: View
    pixels_rc3: Tensor  # uint8, on the CPU


@dataclass(frozen=True, eq=False)
class ResizedImage:
    """What the engine needs of an image: its size and its resized views, and no other pixels."""

    height: int  # of the image, in pixels
    width: int
    views: tuple[ResizedView, ...]  # in the order of `plan_views`


class EncodedView(NamedTuple):
    """A view that the image encoder has seen, of an image of a size in pixels."""

    view: View
    embedding: ImageEmbedding
    image_height: int
    image_width: int
