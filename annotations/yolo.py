"""Writes labels of YOLO: a text file per image, with one polygon per mask in relative coordinates.

Source: https://docs.ultralytics.com/datasets/segment
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial

import numpy as np

from maskmill.annotations.export import ExportFile, ExportImage, Format, file_per_image
from maskmill.annotations.polygons import HOLES, PARTS, centre_outline
from maskmill.annotations.selection import Selection

# Readers find the labels of images/a.jpg in labels/a.txt. Paths are relative to this file.
_DATA = "train: images\nval: images\nnames:\n  0: mask\n"
_FEWEST_CORNERS = 3  # a line with fewer would be read as a box


def yolo_format() -> Format:
    """Writes labels/ and data.yaml; image files belong into images/.

    A polygon goes through the centres of the border pixels of the largest part of a mask. Other parts and holes are
    lost. Readers that fill polygons with cv2.fillPoly get exactly the pixels of that part.
    """
    lost: Counter[str] = Counter()

    def files(selection: Selection) -> Iterator[ExportFile]:
        yield from file_per_image(selection, lambda image: f"labels/{image.stem}.txt", partial(_encode, lost))
        yield ExportFile("data.yaml", 0, lambda: iter(()), lambda _: [_DATA.encode()])

    return Format("yolo", files, unique_stems=True, images_by_stem=True, image_folder="images/", lost=lost)


def _encode(lost: Counter[str], image: ExportImage) -> bytes:
    masks = image.masks
    lines: list[str] = []
    for counts in masks.rle_counts:
        outline = centre_outline(counts, masks.height, masks.width)
        if not outline.parts:  # an empty mask
            continue
        lost[HOLES] += outline.holes
        lost[PARTS] += len(outline.parts) - 1
        corners = outline.parts[0]
        missing = max(0, _FEWEST_CORNERS - len(corners))
        corners = np.concatenate([corners, np.repeat(corners[-1:], missing, axis=0)])
        relative = (corners + 0.5) / (masks.width, masks.height)
        lines.append(" ".join(["0", *(f"{number:.6f}" for number in relative.ravel())]) + "\n")
    return "".join(lines).encode()
