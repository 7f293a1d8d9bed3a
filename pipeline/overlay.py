"""Draws masks over images, as in the figures of SA-1B, and contact sheets of such pictures."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from maskmill.pipeline.errors import StorageError

Pixels = NDArray[np.uint8]

FILL_OPACITY = 0.45
GOLDEN_RATIO = 0.618034  # steps of this size around the colour circle give consecutive masks distinct hues


def draw_masks(
    pixels_HW3: Pixels, masks: Iterable[NDArray[np.bool_]], colours: Sequence[tuple[int, int, int]] | None = None
) -> Pixels:
    """Draws filled and outlined boolean (H, W) masks over an RGB image. Later masks cover earlier ones: pass large
    first. By default, each mask has its own colour.
    """
    height, width = pixels_HW3.shape[:2]
    fill = pixels_HW3.copy()
    outlines = np.zeros_like(pixels_HW3)
    outlined = np.zeros((height, width), np.uint8)
    thickness = max(1, round(max(height, width) / 350))
    for index, mask in enumerate(masks):
        colour = colours[index] if colours else _colour(index)
        fill[mask] = colour
        # The mask hides the parts of earlier outlines that it covers.
        outlined[mask] = 0
        contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(outlines, contours, -1, tuple((c + 255) // 2 for c in colour), thickness)
        cv2.drawContours(outlined, contours, -1, 1, thickness)
    blended = cv2.addWeighted(fill, FILL_OPACITY, pixels_HW3, 1 - FILL_OPACITY, 0)
    return np.where(outlined[..., None] == 1, outlines, blended)


def contact_sheet(pictures: Sequence[tuple[str, Pixels]], tile_width: int = 480, tile_height: int = 360) -> Pixels:
    """Arranges captioned RGB pictures on one sheet, at most four per row, each scaled to fit its tile.

    There must be at least one picture.
    """
    columns = min(4, max(2, round(len(pictures) ** 0.5))) if len(pictures) > 1 else 1
    rows = -(-len(pictures) // columns)
    caption_height = 24
    sheet = Image.new("RGB", (columns * tile_width, rows * (tile_height + caption_height)), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=15)
    for index, (caption, pixels) in enumerate(pictures):
        x = index % columns * tile_width
        y = index // columns * (tile_height + caption_height)
        picture = Image.fromarray(pixels)
        picture.thumbnail((tile_width - 8, tile_height - 8), Image.Resampling.LANCZOS)
        sheet.paste(picture, (x + (tile_width - picture.width) // 2, y + (tile_height - picture.height) // 2))
        draw.text((x + tile_width // 2, y + tile_height), caption, fill="black", font=font, anchor="ma")
    return np.asarray(sheet)


def write_picture(path: Path, pixels_HW3: Pixels) -> None:
    """Writes an RGB picture in the format of the file extension. Creates the folder if it does not exist.

    Raises StorageError if the format is unknown or the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels_HW3).save(path)
    except (OSError, ValueError) as error:
        raise StorageError(f"{path}: cannot write a picture there: {error}") from error


def _colour(index: int) -> tuple[int, int, int]:
    hue = index * GOLDEN_RATIO % 1
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85 if index % 2 else 0.6, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)
