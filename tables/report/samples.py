"""Draws the masks of some images as small JPEGs."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from maskmill.filters import rle
from maskmill.pipeline.errors import ImageError
from maskmill.pipeline.finished import Run
from maskmill.pipeline.overlay import Pixels, draw_masks
from maskmill.tables.pictures import Pictures
from maskmill.tables.report.figures import SampledImage

LONG_SIDE = 560  # pixels
JPEG_QUALITY = 80


@dataclass(frozen=True)
class Picture:
    """An image with its masks drawn on top."""

    image: SampledImage
    jpeg: bytes | None  # None if the image cannot be read any more
    problem: str = ""  # why not


def draw(run: Run, sample: Sequence[SampledImage]) -> Iterator[Picture]:
    """Draws the images of a sample. Raises SourceError if all images are gone, and ObjectError if a part is damaged."""
    pictures = Pictures(run)
    for image in sample:
        shard = next(run.plan.shards_from(int(image.shard)))
        try:
            pixels = pictures.read(shard, image.image_id).pixels
        except ImageError as error:
            yield Picture(image, None, str(error))
            continue
        if pixels.shape[:2] != (image.height, image.width):
            yield Picture(image, None, "the image has another size than in the run")
            continue
        yield Picture(image, _jpeg(_overlay(run, image, pixels)))


def _overlay(run: Run, image: SampledImage, pixels: Pixels) -> Pixels:
    masks = run.mask_rows(image.part, image.image_id).sort_by([("area", "descending")])
    counts = masks["rle_counts"].to_pylist()
    run.check_rles(image.image_id, counts, image.height, image.width)
    scale = min(1, LONG_SIDE / max(pixels.shape[:2]))
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    small = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
    return draw_masks(small, (_shrunk(rle.decode(text, image.height, image.width), size) for text in counts))


def _shrunk(mask_HW: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return cv2.resize(mask_HW.view(np.uint8), size, interpolation=cv2.INTER_NEAREST).astype(bool)


def _jpeg(pixels: Pixels) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "JPEG", quality=JPEG_QUALITY)
    return sink.getvalue()
