"""Converts masks to polygons. Polygons have no holes.

Shapes: P corners of a polygon, XY.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from maskmill.filters import rle

# What polygons cannot express, for messages.
HOLES, PARTS = "holes filled", "smaller parts left out"

Corners = NDArray[np.int64]  # (P, 2)


class Outline(NamedTuple):
    """The outlines of a mask in pixels."""

    parts: list[Corners]  # the outer border of each 8-connected part, the largest enclosed area first
    holes: int  # number of holes, which the parts do not show


def edge_outline(counts: bytes, height: int, width: int) -> Outline:
    """The outline along the edges of pixels: a mask of one pixel is a square with sides of 1.

    pycocotools converts the parts back to exactly the same mask, apart from the holes.
    """
    x0, y0, inside = _inside(counts, height, width)
    # In the doubled mask, the first and second row (column) of a pixel stand for its upper and lower (left and right)
    # edge. Where two border pixels are neighbours across a corner, both map to this corner.
    parts, holes = _contours(np.repeat(np.repeat(inside, 2, axis=0), 2, axis=1))
    corners = [(part + 1) // 2 for part in parts]
    return Outline(
        [part[(part != np.roll(part, 1, axis=0)).any(axis=1)] + np.array([x0, y0]) for part in corners], holes
    )


def centre_outline(counts: bytes, height: int, width: int) -> Outline:
    """The outline through the border pixels, given by their integer positions: a mask of one pixel is one point.

    cv2.fillPoly converts the parts back to exactly the same mask, apart from the holes.
    """
    x0, y0, inside = _inside(counts, height, width)
    parts, holes = _contours(inside)
    return Outline([part + np.array([x0, y0]) for part in parts], holes)


def _inside(counts: bytes, height: int, width: int) -> tuple[int, int, NDArray[np.uint8]]:
    """The position of the box of the mask, and the mask in it."""
    x, y, w, h = rle.bbox(counts, height, width)
    columns = rle.decode(counts, height, width, slice(x, x + w + 1))
    return x, y, np.ascontiguousarray(columns[y : y + h + 1]).view(np.uint8)


def _contours(mask: NDArray[np.uint8]) -> tuple[list[Corners], int]:
    contours, hierarchy = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return [], 0
    is_hole = hierarchy[0, :, 3] >= 0
    parts = [contour[:, 0].astype(np.int64) for contour, hole in zip(contours, is_hole, strict=True) if not hole]
    return sorted(parts, key=_extent, reverse=True), int(is_hole.sum())


def _extent(part: Corners) -> tuple[float, int, list[list[int]]]:
    """Orders parts by enclosed area, then by length, then by position."""
    return cv2.contourArea(part.astype(np.int32)), len(part), part.tolist()
