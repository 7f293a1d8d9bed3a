"""Training data: the data set interface, images with label maps, and an in-memory cache.

Shapes: H W image size, A label maps of one image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from maskmill.model.errors import MaskmillError


class TrainingDataError(MaskmillError):
    """The training data cannot be read, or a saved training state does not match the current run."""


@dataclass(frozen=True)
class LabelledImage:
    """An image and one or more label maps. Each map is a segmentation of the image; label 0 means "not labelled".

    There is one map per annotator, or one map per level (parts, objects, groups). The ground-truth masks of a click
    are the segments that contain it, one from each map.
    """

    pixels_HW3: NDArray[np.uint8]
    maps_AHW: NDArray[np.int32]


class ImageCache:
    """A cache of labelled images by index, limited to `max_bytes`. When it is full, it accepts no further images."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._kept: dict[int, tuple[NDArray[np.uint8], NDArray[np.unsignedinteger]]] = {}

    def get(self, index: int) -> LabelledImage | None:
        """Returns the image, or None if it is not in the cache."""
        if index not in self._kept:
            return None
        pixels_HW3, maps_AHW = self._kept[index]
        return LabelledImage(pixels_HW3, maps_AHW.astype(np.int32))

    def add(self, index: int, image: LabelledImage) -> None:
        """Stores an image if there is space for it. The label maps must not be negative; they are stored compactly."""
        maps_AHW = image.maps_AHW.astype(np.min_scalar_type(int(image.maps_AHW.max())))
        size = image.pixels_HW3.nbytes + maps_AHW.nbytes
        if self._bytes + size <= self._max_bytes:
            self._kept[index] = image.pixels_HW3, maps_AHW
            self._bytes += size


class Dataset(Protocol):
    """A map-style data set. It must be picklable because each training process receives a copy."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> LabelledImage: ...
