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


class Dataset(Protocol):
    """Images by index. Picklable: each process of a run gets its copy."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> LabelledImage: ...
