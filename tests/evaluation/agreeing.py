"""Runs whose masks are drawn by hand, to compare."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maskmill.pipeline.records import ImageMasks, StepTimer
from maskmill.pipeline.views import ResizedImage
from maskmill.pipeline.worker import run_local
from tests import runs
from tests.evaluation.drawings import Mask, rectangle
from tests.fakes import as_it_is, image_masks

HEIGHT, WIDTH = 40, 50
# By the image's letter; None for an image on which the engine fails.
Drawn = Mapping[str, Sequence[Mask] | None]


def square(x: int, y: int, side: int = 20) -> Mask:
    return rectangle(HEIGHT, WIDTH, slice(y, y + side), slice(x, x + side))


@dataclass(frozen=True)
class DrawnEngine:
    """Has the masks drawn for each image, which it knows by its first pixel."""

    drawn: Drawn
    at_once: int = 1

    def __call__(self) -> DrawnEngine:
        return self

    def prepare(self, pixels_HW3: NDArray[np.uint8]) -> ResizedImage:
        return as_it_is(pixels_HW3)

    def device_answers(self) -> bool:
        return True

    def generate(self, image: ResizedImage, timer: StepTimer) -> ImageMasks:
        masks = self.drawn[chr(int(image.views[0].pixels_rc3[0, 0, 0]))]
        if masks is None:
            raise ValueError("no masks")
        return image_masks(np.array(masks, np.bool_).reshape(-1, HEIGHT, WIDTH))


def photograph(letter: str, shade: int = 0) -> bytes:
    pixels_HW3 = np.full((HEIGHT, WIDTH, 3), shade, np.uint8)
    pixels_HW3[0, 0] = ord(letter)
    buffer = io.BytesIO()
    Image.fromarray(pixels_HW3).save(buffer, "PNG")
    return buffer.getvalue()


def drawn_run(folder: Path, drawn: Drawn, out: str | None = None, shade: int = 0, images_per_shard: int = 2) -> str:
    """A run over photographs a.png, b.png..., one for each letter; the address of its output."""
    photographs = folder / "photographs"
    photographs.mkdir(parents=True)
    for letter in drawn:
        (photographs / f"{letter}.png").write_bytes(photograph(letter, shade))
    out = out or str(folder / "out")
    job, plan = runs.begin(photographs, out, images_per_shard=images_per_shard, engine=DrawnEngine(drawn))
    run_local(job, plan, lambda progress: None)
    return out
