"""Paint for the scenes: flat, gradients, noise, stripes, checks, and surfaces cut from photographs.

Shapes: H W canvas size.
"""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from skimage import data as photographs

_SOURCES = ("astronaut", "brick", "camera", "chelsea", "coffee", "grass", "gravel", "rocket")


def texture(height: int, width: int, rng: Generator) -> NDArray:
    """Paint for a whole canvas (H, W, 3), 0..255: flat, gradient, noise, stripes, checks or a photograph's surface."""
    colour = rng.uniform(0, 255, 3).astype(np.float32)
    other = np.clip(colour + rng.normal(0, 40, 3), 0, 255).astype(np.float32)
    kind = rng.choice(["flat", "gradient", "noise", "stripes", "checks", "photo", "photo"])
    if kind == "flat":
        return np.broadcast_to(colour, (height, width, 3)).copy()
    if kind == "photo":
        return _photo_surface(height, width, colour, rng)
    if kind == "noise":
        blend = sum(smooth_noise(height, width, 2**octave, rng) / 2 ** (0.5 * octave) for octave in range(1, 6)) / 2
    else:
        turn = rng.uniform(0, np.pi)
        y, x = np.mgrid[:height, :width].astype(np.float32)
        along = (x * np.cos(turn) + y * np.sin(turn)).astype(np.float32)
        across = (y * np.cos(turn) - x * np.sin(turn)).astype(np.float32)
        if kind == "gradient":
            blend = (along - along.min()) / np.ptp(along)
        else:
            period = rng.uniform(4, 30)
            blend = np.sin(along * (6.28 / period))
            if kind == "checks":
                blend = blend * np.sin(across * (6.28 / period))
            blend = (np.clip(3 * blend, -1, 1) + 1) / 2
    blend = np.asarray(blend, np.float32)[..., None]
    return colour + blend * (other - colour)


def smooth_noise(height: int, width: int, cells: int, rng: Generator) -> NDArray:
    coarse = rng.normal(0, 1, (cells, cells)).astype(np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)


def _photo_surface(height: int, width: int, colour: NDArray, rng: Generator) -> NDArray:
    """A small cut of a photograph, enlarged and tinted: real grain and real edges that bound nothing."""
    source = _load_sources()[rng.integers(len(_SOURCES))]
    side = int(rng.integers(40, min(source.shape[:2]) // 2))
    y, x = rng.integers(0, source.shape[0] - side), rng.integers(0, source.shape[1] - side)
    cut = cv2.resize(source[y : y + side, x : x + side], (width, height)).astype(np.float32)
    if rng.random() < 0.5:
        contrast = rng.uniform(0.2, 1.0)
        return np.clip(colour + contrast * (cut - cut.mean(axis=(0, 1))), 0, 255)
    return cut


@cache
def _load_sources() -> list[NDArray[np.uint8]]:
    images = [getattr(photographs, name)() for name in _SOURCES]
    return [cv2.cvtColor(image, cv2.COLOR_GRAY2RGB) if image.ndim == 2 else image for image in images]
