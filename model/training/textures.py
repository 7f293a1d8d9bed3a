"""Textures for the scenes: flat colours, gradients, noise, stripes, checks and crops of photographs.

A paint is a function from a window of the canvas to its colours. Most objects are small, so colours are computed only
for the requested window.

Shapes: H W canvas size, h w window size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from skimage import data as photographs

_SOURCES = ("astronaut", "brick", "camera", "chelsea", "coffee", "grass", "gravel", "rocket")
_KINDS = ("flat", "gradient", "noise", "stripes", "checks", "photo", "photo")
_FINEST = 32  # grid cells per side of the canvas, for the noise octave with the highest frequency


class Window(NamedTuple):
    """A rectangle of the canvas, in pixels."""

    x: int
    y: int
    width: int
    height: int

    @property
    def pixels(self) -> tuple[slice, slice]:
        """Row and column slices that select the window from an array of the canvas, (H, W, ...)."""
        return slice(self.y, self.y + self.height), slice(self.x, self.x + self.width)


# Returns the colours of a window: (h, w, 3), float32, 0..255.
Paint = Callable[[Window], NDArray]


def texture(height: int, width: int, rng: Generator) -> Paint:
    """Returns a paint of a random type for a canvas of height x width pixels."""
    colour = rng.uniform(0, 255, 3).astype(np.float32)
    other = np.clip(colour + rng.normal(0, 40, 3), 0, 255).astype(np.float32)
    kind = _KINDS[rng.integers(len(_KINDS))]
    if kind == "flat":
        return lambda window: np.broadcast_to(colour, (window.height, window.width, 3))
    if kind == "photo":
        return _photo_surface(height, width, colour, rng)
    if kind == "noise":
        blend = _noise(height, width, rng)
    elif kind == "gradient":
        blend = _gradient(height, width, rng)
    else:
        blend = _waves(rng, crossed=kind == "checks")
    from_blend_32 = np.stack([other - colour, colour], axis=1)
    return lambda window: cv2.transform(blend(window), from_blend_32)


def smooth_noise(height: int, width: int, cells: int, rng: Generator) -> NDArray:
    """Samples normal noise on a grid of cells x cells and interpolates it bilinearly to (H, W)."""
    coarse = rng.normal(0, 1, (cells, cells)).astype(np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)


def _along(window: Window, angle: float) -> NDArray:
    """Returns the coordinate of each pixel (h, w) of a window along the direction `angle` (radians), in pixels."""
    x_w = np.arange(window.x, window.x + window.width, dtype=np.float32) * np.float32(np.cos(angle))
    y_h = np.arange(window.y, window.y + window.height, dtype=np.float32) * np.float32(np.sin(angle))
    return x_w[None, :] + y_h[:, None]


def _gradient(height: int, width: int, rng: Generator) -> Paint:
    angle = rng.uniform(0, np.pi)
    ends = (0.0, width * np.cos(angle), height * np.sin(angle), width * np.cos(angle) + height * np.sin(angle))
    low, high = np.float32(min(ends)), np.float32(max(ends))
    return lambda window: (_along(window, angle) - low) / (high - low)


def _waves(rng: Generator, crossed: bool) -> Paint:
    """Returns a stripe pattern, or a checkerboard pattern if `crossed`."""
    angle, period = rng.uniform(0, np.pi), np.float32(2 * np.pi / rng.uniform(4, 30))

    def blend(window: Window) -> NDArray:
        wave = np.sin(_along(window, angle) * period)
        if crossed:
            wave *= np.sin(_along(window, angle + np.pi / 2) * period)
        return np.clip(1.5 * wave + 0.5, 0, 1)

    return blend


def _noise(height: int, width: int, rng: Generator) -> Paint:
    octaves = (smooth_noise(_FINEST, _FINEST, 2**k, rng) * np.float32(0.5 * 2 ** (-0.5 * k)) for k in range(1, 6))
    return _enlarged(np.sum(list(octaves), axis=0), height, width)


def _photo_surface(height: int, width: int, colour: NDArray, rng: Generator) -> Paint:
    """Returns an enlarged, possibly tinted, crop of a photograph. Its edges are texture, not segment boundaries."""
    source = _load_sources()[rng.integers(len(_SOURCES))]
    side = int(rng.integers(40, min(source.shape[:2]) // 2))
    y, x = rng.integers(0, source.shape[0] - side), rng.integers(0, source.shape[1] - side)
    cut = source[y : y + side, x : x + side]
    if rng.random() < 0.5:
        contrast = rng.uniform(0.2, 1.0)
        contrasted = colour + np.float32(contrast) * (cut - np.float32(cut.mean(axis=(0, 1))))
        cut = np.clip(contrasted, 0, 255).astype(np.uint8)
    paint = _enlarged(cut, height, width)
    return lambda window: paint(window).astype(np.float32)


def _enlarged(small: NDArray, height: int, width: int) -> Paint:
    """Returns a paint that resizes a small image to the canvas, with bilinear interpolation."""
    step_x, step_y = small.shape[1] / width, small.shape[0] / height

    def cut(window: Window) -> NDArray:
        # Maps pixel centres of the window to pixel centres of the small image.
        there = np.array(
            [[step_x, 0, (window.x + 0.5) * step_x - 0.5], [0, step_y, (window.y + 0.5) * step_y - 0.5]], np.float64
        )
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return cv2.warpAffine(small, there, (window.width, window.height), flags=flags, borderMode=cv2.BORDER_REPLICATE)

    return cut


@cache
def _load_sources() -> list[NDArray[np.uint8]]:
    images = [getattr(photographs, name)() for name in _SOURCES]
    return [cv2.cvtColor(image, cv2.COLOR_GRAY2RGB) if image.ndim == 2 else image for image in images]
