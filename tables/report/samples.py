"""Draws the masks of some images as small JPEGs."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from maskmill.pipeline.errors import ImageError, ObjectError
from maskmill.pipeline.finished import Run, RunImage
from maskmill.pipeline.overlay import Pixels, draw_masks
from maskmill.tables.report.figures import SampledImage

LONG_SIDE = 560  # pixels
JPEG_QUALITY = 80


@dataclass(frozen=True)
class Picture:
    """An image with its masks drawn on top."""

    image_id: str
    n_masks: int
    jpeg: bytes | None  # None if the image cannot be read any more
    problem: str = ""  # why not


def draw(run: Run, sample: Sequence[SampledImage]) -> Iterator[Picture]:
    """Draws the images of a sample. Raises SourceError if all images are gone, and StorageError."""
    for sampled in sample:
        image = run.image(sampled.shard, sampled.row)
        try:
            yield Picture(image.image_id, len(image), _jpeg(_overlay(image)))
        except (ObjectError, ImageError) as error:
            yield Picture(image.image_id, len(image), None, str(error))


def _overlay(image: RunImage) -> Pixels:
    """The image with its masks, reduced to LONG_SIDE before they are drawn."""
    pixels = image.read_pixels()
    scale = min(1, LONG_SIDE / max(image.height, image.width))
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    small = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
    largest_first = np.argsort(-image.area, kind="stable")
    return draw_masks(small, (_shrunk(image.decode(row), size) for row in largest_first))


def _shrunk(mask_HW: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return cv2.resize(mask_HW.view(np.uint8), size, interpolation=cv2.INTER_NEAREST).astype(bool)


def _jpeg(pixels: Pixels) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "JPEG", quality=JPEG_QUALITY)
    return sink.getvalue()
