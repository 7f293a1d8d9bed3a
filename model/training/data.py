"""What the trainer learns from: images with label maps, whatever they came from.

Shapes: H W image size, A label maps of one image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from maskmill.model.errors import MaskmillError


class TrainingDataError(MaskmillError):
    """Training data that cannot be read, or of another run."""


@dataclass(frozen=True)
class LabelledImage:
    """An image and several ways to cut it into segments, each a label map; 0 is "not labelled".

    A map per annotator, or a map per level (parts, objects, groups). The right answers to a click are the
    segments under it in all maps.
    """

    pixels_HW3: NDArray[np.uint8]
    maps_AHW: NDArray[np.int32]


class ImageCache:
    """Labelled images by index, as many as fit into `max_bytes`: those that came first stay."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._kept: dict[int, tuple[NDArray[np.uint8], NDArray[np.unsignedinteger]]] = {}

    def get(self, index: int) -> LabelledImage | None:
        """The image, or None where it was not kept."""
        if index not in self._kept:
            return None
        pixels_HW3, maps_AHW = self._kept[index]
        return LabelledImage(pixels_HW3, maps_AHW.astype(np.int32))

    def add(self, index: int, image: LabelledImage) -> None:
        """Keeps an image if there is room for it. Its labels, none below zero, mostly fit a byte."""
        maps_AHW = image.maps_AHW.astype(np.min_scalar_type(int(image.maps_AHW.max())))
        size = image.pixels_HW3.nbytes + maps_AHW.nbytes
        if self._bytes + size <= self._max_bytes:
            self._kept[index] = image.pixels_HW3, maps_AHW
            self._bytes += size


class Dataset(Protocol):
    """Images by index. Picklable: each process of a run gets its copy."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> LabelledImage: ...
