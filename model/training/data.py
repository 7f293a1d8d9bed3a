"""What the trainer learns from: images with label maps, whatever they came from.

Shapes: H W image size, A label maps of one image.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from model.errors import MaskmillError


class TrainingDataError(MaskmillError):
    """Training data that cannot be read."""


@dataclass(frozen=True)
class LabelledImage:
    """An image and several ways to cut it into segments, each a label map; 0 is "not labelled".

    A map per annotator, or a map per level (parts, objects, groups). The right answers to a click are the
    segments under it in all maps.
    """

    pixels_HW3: NDArray[np.uint8]
    maps_AHW: NDArray[np.int32]


class Dataset(Protocol):
    """Images by index. A new kind of data needs no more than this."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> LabelledImage: ...


class LabelMapFolder:
    """Photographs `ID.jpg` with one `ID.segK.png` per annotator, as BSDS500 is laid out. Held in memory."""

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        """Reads the first `limit` images by name.

        Raises:
            TrainingDataError: no such folder, no labelled image in it, or a file that does not fit its image.
        """
        photographs = sorted(folder.glob("*.jpg"))[:limit]
        if not photographs:
            raise TrainingDataError(f"{folder}: no .jpg files; expected ID.jpg with ID.seg0.png, ID.seg1.png ...")
        self._images = [_read_labelled(path) for path in photographs]

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int, /) -> LabelledImage:
        return self._images[index]


def _read_labelled(photograph: Path) -> LabelledImage:
    paths = sorted(photograph.parent.glob(f"{photograph.stem}.seg*.png"))
    if not paths:
        raise TrainingDataError(f"{photograph}: no {photograph.stem}.seg0.png beside it")
    pixels_HW3 = _read(photograph, cv2.IMREAD_COLOR)[..., ::-1]
    maps = [_read(path, cv2.IMREAD_UNCHANGED) for path in paths]
    for path, label_map in zip(paths, maps, strict=True):
        if label_map.shape != pixels_HW3.shape[:2]:
            raise TrainingDataError(f"{path}: not one channel of the image's size")
    # Annotators number segments from 0 or 1; 0 must stay free for "not labelled".
    return LabelledImage(np.ascontiguousarray(pixels_HW3), np.stack(maps).astype(np.int32) + 1)


def _read(path: Path, mode: int) -> NDArray:
    pixels = cv2.imread(str(path), mode)
    if pixels is None:
        raise TrainingDataError(f"{path}: not a readable image")
    return pixels
