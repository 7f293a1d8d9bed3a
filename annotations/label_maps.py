"""Label maps: photographs `ID.jpg` with one map `ID.segK.png` per annotator, the layout of BSDS500."""

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
    """A folder of label maps. Each value above 0 in a map is a segment; 0 is unlabelled."""

    folder: Path
    photographs: tuple[Path, ...]
    maps: tuple[tuple[Path, ...], ...]  # per photograph: one map per annotator

    @property
    def name(self) -> str:
        return self.folder.name

    def __len__(self) -> int:
        return len(self.photographs)

    def image_id(self, index: int) -> str:
        return self.photographs[index].stem

    def __getitem__(self, index: int, /) -> AnnotatedImage:
        photograph = self.photographs[index]
        maps = [_read_map(path) for path in self.maps[index]]
        for path, map_HW in zip(self.maps[index], maps, strict=True):
            if map_HW.shape != maps[0].shape:
                raise AnnotationError(f"{path}: its size differs from that of {self.maps[index][0].name}")
        segments = [(a, map_HW == label) for a, map_HW in enumerate(maps) for label in np.unique(map_HW) if label]
        return annotated_image(
            photograph.stem,
            str(photograph),
            (maps[0].shape[0], maps[0].shape[1]),
            [rle.encode(mask_HW) for _, mask_HW in segments],
            photograph.read_bytes,
            [annotator for annotator, _ in segments],
        )


def open_label_maps(folder: Path, images: Path | None = None) -> LabelMapFolder:
    """The label maps in `folder`, sorted by name. Their photographs are in `images`, or in the same folder.

    Raises AnnotationError if a map has no photograph, or a photograph in `folder` has no map.
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
    except Exception as error:  # decoders raise any kind of exception on damaged files
        raise AnnotationError(f"{path}: not a readable label map: {one_line_cause(error)}") from error
