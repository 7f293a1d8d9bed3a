"""Data augmentation: converts a labelled image to a model input by random crops, flips, colour changes and resizing.

Shapes: H W image size, h w resized size, A label maps, S input side, s = S / 2 side of the label maps from which
prompts are sampled.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from maskmill.model.frame import Frame
from maskmill.model.training.data import LabelledImage

# Label maps have half the resolution of the input, which is twice the resolution of the mask logits. Compared with full
# resolution, they need a quarter of the memory and computation.
LABEL_STRIDE = 2


@dataclass(frozen=True)
class Example:
    """A model input: one image with its label maps, padded at the right and bottom. Padding has label 0."""

    pixels_SS3: NDArray[np.uint8]
    maps_Ass: NDArray[np.int32]
    height: int
    width: int


def fit(image: LabelledImage, side: int) -> Example:
    """Resizes the whole image to a longest side of `side` pixels and pads it to a square, as the pipeline does."""
    resized_hw3 = Frame.of(image.pixels_HW3, side).resize(image.pixels_HW3)
    return _place(resized_hw3.numpy(), image.maps_AHW, side)


def augment(image: LabelledImage, side: int, rng: Generator) -> Example:
    """Applies a random crop, flips, resizing and colour changes.

    A crop has 20 to 100 % of the image area and nearly the aspect ratio of the image. 30 % of the images are not
    cropped.
    """
    pixels_HW3, maps_AHW = image.pixels_HW3, image.maps_AHW
    height, width = pixels_HW3.shape[:2]
    if rng.random() < 0.7:
        side_share, stretch = rng.uniform(0.45, 1.0), np.exp(rng.uniform(-0.2, 0.2))
        h, w = int(height * side_share), int(min(width, width * side_share * stretch))
        y, x = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
        pixels_HW3, maps_AHW = pixels_HW3[y : y + h, x : x + w], maps_AHW[:, y : y + h, x : x + w]
    if rng.random() < 0.5:
        pixels_HW3, maps_AHW = pixels_HW3[:, ::-1], maps_AHW[..., ::-1]
    # Vertical flips and transpositions are rare because cameras do not produce such images, and a small model should
    # spend most of its training steps on realistic ones.
    if rng.random() < 0.1:
        pixels_HW3, maps_AHW = pixels_HW3[::-1], maps_AHW[:, ::-1]
    if rng.random() < 0.1:
        pixels_HW3, maps_AHW = pixels_HW3.transpose(1, 0, 2), maps_AHW.transpose(0, 2, 1)
    height, width = pixels_HW3.shape[:2]
    # A quarter of the images are made smaller than the input, so that the scale decreases as well as increases. The
    # aspect ratio changes slightly.
    longest = round(side * rng.uniform(0.6, 1.0)) if rng.random() < 0.25 else side
    new_height, new_width = Frame(height, width, longest).resized
    stretch = np.exp(rng.uniform(-0.12, 0.12))
    new_height, new_width = (int(np.clip(v, 16, side)) for v in (new_height, new_width * stretch))
    # `Frame.resize` uses the same bilinear filter, but it preserves the aspect ratio.
    resized = Image.fromarray(pixels_HW3).resize((new_width, new_height), Image.Resampling.BILINEAR)
    example = _place(np.array(resized), maps_AHW, side)
    window = example.pixels_SS3[:new_height, :new_width]
    window[:] = _recolour(window, rng)
    return example


def paste(image: LabelledImage, other: LabelledImage, rng: Generator) -> LabelledImage:
    """Pastes a random segment of `other` at a random position in `image`.

    The segment covers 0.3 to 20 % of `other`. If `other` has no such segment, the image is returned unchanged.

    Source: Ghiasi et al. 2021, "Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation".
    """
    map_HW = other.maps_AHW[rng.integers(len(other.maps_AHW))]
    labels, counts = np.unique(map_HW, return_counts=True)
    labels = labels[(labels != 0) & (counts > 0.003 * map_HW.size) & (counts < 0.2 * map_HW.size)]
    if not labels.size:
        return image
    mask_HW = map_HW == rng.choice(labels)
    rows, columns = np.flatnonzero(mask_HW.any(axis=1)), np.flatnonzero(mask_HW.any(axis=0))
    height, width = image.pixels_HW3.shape[:2]
    h, w = min(height, rows[-1] + 1 - rows[0]), min(width, columns[-1] + 1 - columns[0])
    from_hw = slice(rows[0], rows[0] + h), slice(columns[0], columns[0] + w)
    y, x = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
    to_hw = slice(y, y + h), slice(x, x + w)
    mask_hw = mask_HW[from_hw]
    pixels_HW3, maps_AHW = image.pixels_HW3.copy(), image.maps_AHW.copy()
    pixels_HW3[to_hw][mask_hw] = other.pixels_HW3[from_hw][mask_hw]
    maps_AHW[:, *to_hw][:, mask_hw] = maps_AHW.max() + 1
    return LabelledImage(pixels_HW3, maps_AHW)


def _place(pixels_hw3: NDArray[np.uint8], maps_AHW: NDArray[np.int32], side: int) -> Example:
    """Pads the resized pixels to the input side and resizes the full-size label maps to match."""
    height, width = pixels_hw3.shape[:2]
    pixels_SS3 = np.zeros((side, side, 3), np.uint8)
    pixels_SS3[:height, :width] = pixels_hw3
    maps_Ass = np.zeros((len(maps_AHW), side // LABEL_STRIDE, side // LABEL_STRIDE), np.int32)
    # Nearest-neighbour resizing: each label pixel inside the image gets the label at its centre.
    rows, columns = _nearest(height, maps_AHW.shape[1]), _nearest(width, maps_AHW.shape[2])
    maps_Ass[:, : rows.size, : columns.size] = maps_AHW[:, rows[:, None], columns[None, :]]
    return Example(pixels_SS3, maps_Ass, height, width)


def _nearest(input_length: int, image_length: int) -> NDArray[np.int64]:
    centres = np.arange(LABEL_STRIDE / 2, input_length, LABEL_STRIDE)
    return np.minimum((centres * image_length / input_length).astype(np.int64), image_length - 1)


def _recolour(pixels_HW3: NDArray[np.uint8], rng: Generator) -> NDArray[np.uint8]:
    pixels = pixels_HW3.astype(np.float32)
    if rng.random() < 0.8:
        pixels *= (
            rng.uniform(0.7, 1.3, 3).astype(np.float32) if rng.random() < 0.5 else np.float32(rng.uniform(0.6, 1.4))
        )
        grey = pixels.mean(axis=2, keepdims=True)
        pixels = grey + np.float32(rng.uniform(0.3, 1.5)) * (pixels - grey)
        mean = pixels.mean()
        pixels = mean + np.float32(rng.uniform(0.6, 1.3)) * (pixels - mean)
    if rng.random() < 0.1:
        pixels = np.repeat(pixels.mean(axis=2, keepdims=True), 3, axis=2)
    if rng.random() < 0.1:
        pixels = cv2.GaussianBlur(pixels, (0, 0), rng.uniform(0.5, 1.2))
    if rng.random() < 0.05:
        pixels = 255 - pixels
    return np.clip(pixels, 0, 255).astype(np.uint8)
