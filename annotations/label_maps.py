"""Label maps: photographs `ID.jpg` with one map `ID.segK.png` per annotator, as BSDS500 is laid out."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maskmill.annotations.records import AnnotatedImage, AnnotationError, annotated_image
from maskmill.filters import rle
from maskmill.pipeline.errors import one_line_cause

_ONE_CHANNEL = ("L", "P", "I", "I;16", "1")


@dataclass(frozen=True)
class LabelMapFolder:
    """A folder of label maps. Every number in a map is a segment, 0 too: annotators begin at 0 or at 1."""

    folder: Path
    photographs: tuple[Path, ...]
    maps: tuple[tuple[Path, ...], ...]  # of each photograph, one per annotator

    @property
    def name(self) -> str:
        return self.folder.name

    def __len__(self) -> int:
        return len(self.photographs)

    def __getitem__(self, index: int, /) -> AnnotatedImage:
        photograph = self.photographs[index]
        maps = [_read_map(path) for path in self.maps[index]]
        for path, map_HW in zip(self.maps[index], maps, strict=True):
            if map_HW.shape != maps[0].shape:
                raise AnnotationError(f"{path}: not of the size of {self.maps[index][0].name}")
        segments = [(a, map_HW == label) for a, map_HW in enumerate(maps) for label in np.unique(map_HW)]
        return annotated_image(
            photograph.stem,
            str(photograph),
            (maps[0].shape[0], maps[0].shape[1]),
            [rle.encode(mask_HW) for _, mask_HW in segments],
            photograph.read_bytes,
            [annotator for annotator, _ in segments],
        )


def open_label_maps(folder: Path, images: Path | None = None) -> LabelMapFolder:
    """The label maps in `folder`, by name; their photographs are in `images`, or beside them.

    AnnotationError where the photograph of a map is missing, or the maps of a photograph beside them.
    """
    maps: defaultdict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.glob("*.seg*.png")):
        maps[path.name.rpartition(".seg")[0]].append(path)
    photographs = [(images or folder) / f"{image_id}.jpg" for image_id in maps]
    for photograph, paths in zip(photographs, maps.values(), strict=True):
        if not photograph.is_file():
            raise AnnotationError(f"{paths[0]}: its photograph {photograph} is missing")
    for photograph in sorted(folder.glob("*.jpg")):
        if photograph.stem not in maps:
            raise AnnotationError(f"{photograph}: no {photograph.stem}.seg0.png beside it")
    return LabelMapFolder(folder, tuple(photographs), tuple(map(tuple, maps.values())))


def _read_map(path: Path) -> NDArray[np.integer]:
    try:
        with Image.open(path, formats=["PNG"]) as image:
            if image.mode not in _ONE_CHANNEL:
                raise AnnotationError(f"{path}: not one channel of labels (its mode is {image.mode})")
            return np.asarray(image)
    except AnnotationError:
        raise
    except Exception as error:  # damaged files make decoders raise anything
        raise AnnotationError(f"{path}: not a readable label map: {one_line_cause(error)}") from error
