"""Writes and reads "CVAT for images 1.1": one XML file with the masks of all images.

Source: https://docs.cvat.ai/docs/manual/advanced/xml_format
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from maskmill.annotations.coco import LOOKED_FOR, find_root
from maskmill.annotations.export import ExportFile, ExportImage, Format
from maskmill.annotations.json_files import Fields, image_size
from maskmill.annotations.records import AnnotatedImage, AnnotationError, annotated_image
from maskmill.annotations.segmentations import SegmentationError, to_counts
from maskmill.annotations.selection import Selection
from maskmill.filters import rle
from maskmill.pipeline.errors import one_line_cause
from maskmill.pipeline.storage import one_line

logger = logging.getLogger(__name__)

CVAT_NAME = "annotations.xml"
LABEL = "mask"
UNKNOWN_CHARACTERS = "names with characters that XML does not allow"
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, eq=False)
class CvatImages:
    """The images of a file, in its order. Shapes become masks when an image is read."""

    path: Path
    images_option: Path | None
    root: Path  # the folder that the names are relative to
    images: tuple[Fields, ...]  # attributes of `image`, and `shapes`
    format_name: str = "cvat"

    @property
    def name(self) -> str:
        return self.path.name

    def __len__(self) -> int:
        return len(self.images)

    def image_id(self, index: int) -> str:
        return self.images[index]["name"]

    def photograph(self, index: int) -> str:
        """See importing.Importable."""
        return self.image_id(index)

    def __getitem__(self, index: int, /) -> AnnotatedImage:
        image = self.images[index]
        where = f"{self.path}: image {one_line(image['name'])}"
        size = image_size({side: _whole(image.get(side)) for side in ("height", "width")}, where)
        rles: list[bytes] = []
        for number, (tag, attributes) in enumerate(image["shapes"], 1):
            try:
                counts = _SHAPES[tag](attributes, *size)
            except (SegmentationError, ValueError) as error:
                raise AnnotationError(f"{where}: shape {number}, {tag}: {error}") from error
            if counts is not None:
                rles.append(counts)
        photograph = self.root / image["name"]
        return annotated_image(image["name"], str(photograph), size, rles, photograph.read_bytes, where=where)

    def __reduce__(self) -> tuple[Any, ...]:
        return open_cvat, (self.path, self.images_option)


def open_cvat(path: Path, images: Path | None = None, images_needed: bool = True) -> CvatImages:
    """The file at `path`. Its photographs are in `images`, or are searched for near the file.

    Polygons and masks are read. Other shapes, such as boxes, have no mask: a warning counts them.

    Raises AnnotationError if it is not a file of CVAT for images, or if photographs are needed and not found.
    """
    found: list[Fields] = []
    without: Counter[str] = Counter()
    try:
        for _, element in ElementTree.iterparse(path):
            if element.tag == "image":
                without.update(child.tag for child in element if child.tag not in _SHAPES and "label" in child.attrib)
                shapes = [(child.tag, dict(child.attrib)) for child in element if child.tag in _SHAPES]
                found.append(element.attrib | {"shapes": shapes})
                element.clear()
            elif element.tag == "track":
                raise AnnotationError(f"{path}: CVAT for video: export it from CVAT as `CVAT for images 1.1`")
    except ElementTree.ParseError as error:
        raise AnnotationError(f"{path}: not XML: {one_line_cause(error)}") from error
    except OSError as error:
        raise AnnotationError(f"{path}: {error.strerror or error}") from error
    names = [image.get("name") for image in found]
    if not names or not all(names):
        raise AnnotationError(f"{path}: not `CVAT for images 1.1`: no images with a name in it")
    if len(set(names)) < len(names):
        raise AnnotationError(f"{path}: two images have the same name")
    if without:
        kinds = ", ".join(f"{count} {tag}" for tag, count in sorted(without.items()))
        logger.warning("%s: shapes without a mask are left out: %s", path, kinds)
    root = find_root(path, [image["name"] for image in found[:LOOKED_FOR]], images, images_needed)
    return CvatImages(path, images, root, tuple(found))


def _whole(text: str | None) -> int | None:
    return int(text) if text and re.fullmatch(r"\d{1,9}", text) else None


def _read_polygon(attributes: dict[str, str], height: int, width: int) -> bytes | None:
    corners = [float(number) for point in attributes.get("points", "").split(";") for number in point.split(",")]
    return to_counts([corners], height, width)


def _read_mask(attributes: dict[str, str], height: int, width: int) -> bytes | None:
    box = [_whole(attributes.get(name)) for name in ("left", "top", "width", "height")]
    runs = [_whole(run.strip()) for run in attributes.get("rle", "").split(",")]
    left, top, w, h = box
    if left is None or top is None or w is None or h is None or None in runs:
        raise SegmentationError("its box or its rle has something else than integers from 0")
    if left + w > width or top + h > height:
        raise SegmentationError(f"its box ends at {left + w}, {top + h}, outside of the image of {width} x {height}")
    lengths = np.array(runs, np.int64)
    if lengths.sum() != w * h:
        raise SegmentationError(f"its rle covers {lengths.sum()} pixels of {w * h}")
    columns_Hc = np.zeros((height, w), np.bool_)
    columns_Hc[top : top + h] = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(h, w)
    return rle.encode_columns(columns_Hc, left, width) if columns_Hc.any() else None


_SHAPES: dict[str, Callable[[dict[str, str], int, int], bytes | None]] = {
    "polygon": _read_polygon,
    "mask": _read_mask,
}


def cvat_format() -> Format:
    """Writes annotations.xml. The task in CVAT needs a label `mask` and images with the same names.

    The masks are exact. A larger mask lies below a smaller one.
    """
    lost: Counter[str] = Counter()

    def files(selection: Selection) -> Iterator[ExportFile]:
        yield ExportFile(CVAT_NAME, len(selection), selection.images, partial(_encode, lost))

    return Format("cvat", files, image_folder="images/", lost=lost)


def _encode(lost: Counter[str], images: Iterator[ExportImage]) -> Iterator[bytes]:
    yield b'<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n'
    for image in images:
        name, replaced = _NOT_XML.subn("\ufffd", image.image.name)
        lost[UNKNOWN_CHARACTERS] += bool(replaced)
        size = f'width="{image.image.width}" height="{image.image.height}"'
        yield f'<image id="{image.image.number - 1}" name={quoteattr(name)} {size}>\n'.encode()
        yield from (f"{element}\n".encode() for element in _elements(image))
        yield b"</image>\n"
    yield b"</annotations>\n"


def _elements(image: ExportImage) -> Iterator[str]:
    masks = image.masks
    levels = np.argsort(np.argsort(-masks.area, kind="stable"))
    for counts, (x, y, w, h), level in zip(masks.rle_counts, masks.boxes.tolist(), levels.tolist(), strict=True):
        inside = rle.decode(counts, masks.height, masks.width, slice(x, x + w + 1))[y : y + h + 1]
        box = f'left="{x}" top="{y}" width="{w + 1}" height="{h + 1}"'
        runs = ", ".join(map(str, _row_runs(inside)))
        yield f'<mask label="{LABEL}" source="auto" occluded="0" rle="{runs}" {box} z_order="{level}"></mask>'


def _row_runs(mask_HW: NDArray[np.bool_]) -> list[int]:
    """The run lengths of a mask row by row, the first one of zeros."""
    by_row = mask_HW.ravel()
    changes = np.flatnonzero(np.diff(by_row, prepend=False))
    return np.diff(changes, prepend=0, append=by_row.size).tolist()
