"""Reads and writes label maps: images `ID.jpg` with one map `ID.segK.png` per annotator, the layout of BSDS500.

Shapes: H W image size, K masks of one image.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maskmill.annotations.export import ExportFile, ExportImage, Format, file_per_image
from maskmill.annotations.records import AnnotatedImage, AnnotationError, annotated_image
from maskmill.annotations.selection import Selection
from maskmill.filters import rle
from maskmill.pipeline.errors import one_line_cause

_ONE_CHANNEL = ("L", "P", "I", "I;16", "1")


@dataclass(frozen=True)
class LabelMapFolder:
    """A folder of label maps. Each value above 0 in a map is a segment; 0 is unlabelled."""

    folder: Path
    photographs: tuple[Path, ...]
    maps: tuple[tuple[Path, ...], ...]  # per photograph: one map per annotator
    format_name: str = "labels"

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def path(self) -> Path:
        """See importing.Importable."""
        return self.folder

    @property
    def root(self) -> Path:
        """See importing.Importable."""
        return self.photographs[0].parent

    def photograph(self, index: int) -> str:
        """See importing.Importable."""
        return self.photographs[index].name

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


HIDDEN = "masks hidden completely by smaller ones"
OVERFULL = "masks left out because a map has 65535 labels"


def label_map_format() -> Format:
    """Writes a PNG of 16 bits per image. A pixel is 1 + the mask_id of the smallest mask there, 0 without a mask.

    The parts of masks that lie below smaller masks are lost.
    """
    lost: Counter[str] = Counter()

    def files(selection: Selection) -> Iterator[ExportFile]:
        return file_per_image(selection, lambda image: f"{image.stem}.seg0.png", partial(_encode, lost))

    return Format("labels", files, unique_stems=True, images_by_stem=True, lost=lost)


def _encode(lost: Counter[str], image: ExportImage) -> bytes:
    masks = image.masks
    label_K = masks.rows["mask_id"].to_numpy().astype(np.int64) + 1
    map_HW = np.zeros((masks.height, masks.width), np.uint16)
    drawn = 0
    for k in np.argsort(-masks.area, kind="stable").tolist():
        if label_K[k] > np.iinfo(np.uint16).max:
            lost[OVERFULL] += 1
            continue
        drawn += int(masks.area[k] > 0)
        x, _, w, _ = masks.boxes[k].tolist()
        columns = slice(x, x + w + 1)
        map_HW[:, columns][rle.decode(masks.rle_counts[k], masks.height, masks.width, columns)] = label_K[k]
    lost[HIDDEN] += drawn - int(np.count_nonzero(np.unique(map_HW)))
    done, png = cv2.imencode(".png", map_HW)
    assert done
    return png.tobytes()
