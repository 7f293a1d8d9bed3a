"""Procedural scenes: pictures drawn together with the right answers, for training without photographs.

A scene is painted back to front. Each thing has up to three levels that are all right answers: its
parts, the object, and the group of like objects it belongs to. Everything follows from the seed.

Shapes: H W scene size, h w size of a thing's bounding box.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from model.training.data import LabelledImage
from model.training.textures import smooth_noise, texture

PARTS, OBJECTS, GROUPS = range(3)


class Scenes:
    """The scenes of `count` seeds. Each is drawn when first asked for, then kept: drawing takes as long as learning."""

    def __init__(self, count: int, first_seed: int, longest_side: int) -> None:
        self._count, self._first_seed, self._longest_side = count, first_seed, longest_side
        self._drawn: dict[int, LabelledImage] = {}

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int, /) -> LabelledImage:
        if index not in self._drawn:
            self._drawn[index] = draw_scene(self._first_seed + index, self._longest_side)
        return self._drawn[index]


def draw_scene(seed: int, longest_side: int) -> LabelledImage:
    """The scene of a seed. Its maps are parts, objects and groups; every pixel is labelled in all three."""
    rng = np.random.default_rng(seed)
    shorter = int(longest_side * rng.uniform(0.6, 1.0))
    height, width = (longest_side, shorter) if rng.random() < 0.4 else (shorter, longest_side)
    canvas = _Canvas(height, width, rng)
    _paint_background(canvas, rng)
    for _ in range(rng.integers(2, 10)):
        _THINGS[rng.integers(len(_THINGS))](canvas, rng)
    return LabelledImage(_photograph(canvas.pixels, rng), canvas.maps)


class _Canvas:
    """The picture so far, and the labels of its pixels."""

    def __init__(self, height: int, width: int, rng: Generator) -> None:
        self.pixels: NDArray = np.zeros((height, width, 3), np.float32)
        self.maps: NDArray[np.int32] = np.zeros((3, height, width), np.int32)
        self._rng = rng
        self._last_label = 0

    def new_label(self) -> int:
        self._last_label += 1
        return self._last_label

    def paint(self, mask_HW: NDArray, texture_HW3: NDArray, labels: tuple[int, ...]) -> None:
        """Lays a texture over a soft mask (0..255); labels those pixels that it mostly covers."""
        x, y, w, h = cv2.boundingRect(mask_HW)
        window = slice(y, y + h), slice(x, x + w)
        alpha = mask_HW[window][..., None].astype(np.float32) / 255
        self.pixels[window] += alpha * (texture_HW3[window] - self.pixels[window])
        covered = mask_HW[window] > 127
        for level, label in enumerate(labels):
            self.maps[level][window][covered] = label

    def shade(self, mask_HW: NDArray) -> None:
        """A soft shadow beside a thing about to be painted. It is nobody's segment."""
        height, width = mask_HW.shape
        dx, dy = self._rng.uniform(-0.04, 0.04, 2) * width
        move = np.array([[1, 0, dx], [0, 1, dy]], np.float32)
        shadow = cv2.warpAffine(mask_HW, move, (width, height)).astype(np.float32) / 255
        shadow = cv2.GaussianBlur(shadow, (0, 0), self._rng.uniform(1, 6))
        self.pixels *= 1 - self._rng.uniform(0.2, 0.6) * shadow[..., None]


def _paint_background(canvas: _Canvas, rng: Generator) -> None:
    """One to four regions: walls, floors, skies, hills."""
    height, width = canvas.maps.shape[1:]
    whole = np.full((height, width), 255, np.uint8)
    canvas.paint(whole, texture(height, width, rng), (canvas.new_label(),) * 3)
    for _ in range(rng.integers(0, 4)):
        # A wavy edge across the picture; everything beyond it is the new region.
        along = np.linspace(0, 1, 24)
        waves = sum(
            rng.normal(0, 0.06 / k) * np.sin(k * np.pi * along * rng.uniform(1, 2) + rng.uniform(0, 6))
            for k in (1, 2, 4)
        )
        wavy = rng.random() < 0.6
        edge = rng.uniform(0.2, 0.8) + rng.uniform(-0.3, 0.3) * (along - 0.5) + wavy * waves
        if rng.random() < 0.7:
            points = np.stack([along * width, edge * height], axis=1)
            corners = [[width, height], [0, height]]
        else:
            points = np.stack([edge * width, along * height], axis=1)
            corners = [[width, height], [width, 0]]
        mask = _fill(np.concatenate([points, corners]), height, width)
        canvas.paint(mask, texture(height, width, rng), (canvas.new_label(),) * 3)


def _draw_object(canvas: _Canvas, rng: Generator) -> None:
    height, width = canvas.maps.shape[1:]
    size = min(height, width) * np.exp(rng.uniform(np.log(0.04), np.log(0.5)))
    centre = rng.uniform([0, 0], [width, height])
    label = canvas.new_label()
    outline = random_outline(rng) * size + centre
    _paint_thing(canvas, outline, rng, label, label, texture(height, width, rng), int(rng.integers(1 << 30)))


def _draw_repeated(canvas: _Canvas, rng: Generator) -> None:
    """Coins, windows, berries: one shape many times, in rows or scattered."""
    height, width = canvas.maps.shape[1:]
    size = min(height, width) * rng.uniform(0.015, 0.08)
    shape, paint, group = random_outline(rng), texture(height, width, rng), canvas.new_label()
    same_parts = int(rng.integers(1 << 30))
    rows, columns = rng.integers(1, 6, 2)
    step = size * rng.uniform(2.1, 3.5)
    start = rng.uniform([0, 0], [width * 0.7, height * 0.7])
    jitter = rng.choice([0.0, 0.3, 0.8])
    for row in range(rows):
        for column in range(columns):
            centre = start + step * (np.array([column, row]) + rng.uniform(-jitter, jitter, 2))
            own = paint + rng.normal(0, 8, 3).astype(np.float32)
            outline = shape * size * rng.uniform(0.85, 1.15) + centre
            _paint_thing(canvas, outline, rng, canvas.new_label(), group, own, same_parts)


def _paint_thing(
    canvas: _Canvas, outline: NDArray, rng: Generator, label: int, group: int, paint: NDArray, parts_seed: int
) -> None:
    height, width = canvas.maps.shape[1:]
    mask = _fill(outline, height, width)
    if not mask.any():
        return
    if rng.random() < 0.3:
        canvas.shade(mask)
    if rng.random() < 0.4:
        paint = _shaded(paint, outline)
    canvas.paint(mask, paint, (label, label, group))
    # The seed makes all things of a group have the same parts.
    parts_rng = np.random.default_rng(parts_seed)
    if parts_rng.random() < 0.5:
        return
    low, high = outline.min(axis=0), outline.max(axis=0)
    for _ in range(parts_rng.integers(1, 4)):
        size = (high - low).max() * parts_rng.uniform(0.1, 0.35)
        part = random_outline(parts_rng) * size + low + parts_rng.uniform(0.15, 0.85, 2) * (high - low)
        part_mask = cv2.bitwise_and(_fill(part, height, width), mask)
        if part_mask.any():
            canvas.paint(part_mask, texture(height, width, parts_rng), (canvas.new_label(), label, group))


def _draw_strokes(canvas: _Canvas, rng: Generator) -> None:
    """Poles, wires, branches: each its own object, together a group."""
    height, width = canvas.maps.shape[1:]
    paint, group = texture(height, width, rng), canvas.new_label()
    for _ in range(rng.integers(1, 5)):
        steps = rng.normal(0, width * rng.uniform(0.02, 0.12), (rng.integers(2, 8), 2)) + rng.normal(0, width * 0.06, 2)
        points = rng.uniform([0, 0], [width, height]) + np.cumsum(steps, axis=0)
        mask = np.zeros((height, width), np.uint8)
        thickness = int(rng.integers(2, max(3, width // 40)))
        cv2.polylines(mask, [np.round(points).astype(np.int32)], False, 255, thickness, cv2.LINE_AA)
        if mask.any():
            label = canvas.new_label()
            canvas.paint(mask, paint, (label, label, group))


def _draw_text(canvas: _Canvas, rng: Generator) -> None:
    """A sign: letters on a plate. Letters are parts; sign and lettering are objects."""
    height, width = canvas.maps.shape[1:]
    letters = "".join(rng.choice(list("ABCDEFGHKLMNPRSTXYZ023456789"), rng.integers(1, 7)))
    scale, thickness = rng.uniform(0.5, 2.5), int(rng.integers(1, 6))
    font = int(rng.choice([cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_TRIPLEX, cv2.FONT_HERSHEY_DUPLEX]))
    (text_width, text_height), _ = cv2.getTextSize(letters, font, scale, thickness)
    x, y = (int(v) for v in rng.uniform([0, text_height], [max(1, width - text_width), max(height, text_height)]))
    plate, sign = np.zeros((height, width), np.uint8), canvas.new_label()
    margin = int(rng.integers(4, 14))
    cv2.rectangle(plate, (x - margin, y - text_height - margin), (x + text_width + margin, y + margin), 255, -1)
    if rng.random() < 0.7:
        canvas.paint(plate, texture(height, width, rng), (canvas.new_label(), sign, sign))
    mask = np.zeros((height, width), np.uint8)
    cv2.putText(mask, letters, (x, y), font, scale, 255, thickness, cv2.LINE_AA)
    if mask.any():
        canvas.paint(mask, texture(height, width, rng), (canvas.new_label(), sign, sign))


# Single objects three times as often as each of the others.
_THINGS = (_draw_object, _draw_object, _draw_object, _draw_repeated, _draw_strokes, _draw_text)


def random_outline(rng: Generator) -> NDArray:
    """A closed outline (P, 2) around the origin, about one unit in radius: blob, ellipse, polygon, box or crescent."""
    kind = rng.choice(["blob", "blob", "ellipse", "polygon", "box", "crescent"])
    if kind == "polygon":
        angle = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 9)))
        radius = rng.uniform(0.5, 1.0, angle.size)
    elif kind == "box":
        half = np.arctan(rng.uniform(0.2, 1.0))
        angle = np.array([half, np.pi - half, np.pi + half, -half])
        radius = np.ones(4)
    else:
        angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
        radius = np.ones(64)
        if kind == "blob":
            for k in range(2, 7):
                radius += rng.normal(0, 0.5 / k) * np.cos(k * angle + rng.uniform(0, 6))
            radius = np.clip(radius, 0.2, 1.6)
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    if kind == "crescent":
        points[:, 1] = np.where(points[:, 1] < 0, points[:, 1] * rng.uniform(-0.6, 0.3), points[:, 1])
    if kind != "box":
        points[:, 1] *= rng.uniform(0.35, 1.0)
    turn = rng.choice([0.0, rng.uniform(0, 2 * np.pi)])
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return (points @ rotation.T).astype(np.float32)


def _fill(outline: NDArray, height: int, width: int) -> NDArray:
    mask = np.zeros((height, width), np.uint8)
    # Four fractional bits place outlines between pixels.
    cv2.fillPoly(mask, [np.round(outline * 16).astype(np.int32)], 255, cv2.LINE_AA, shift=4)
    return mask


def _shaded(paint: NDArray, outline: NDArray) -> NDArray:
    """Light from one side: brighter to darker along the thing's diagonal, so that flat paint looks round."""
    height, width = paint.shape[:2]
    (x0, y0), (x1, y1) = outline.min(axis=0), outline.max(axis=0)
    across = (np.arange(width, dtype=np.float32) - x0) / (x1 - x0 + 1)
    down = (np.arange(height, dtype=np.float32) - y0) / (y1 - y0 + 1)
    light = 1.25 - 0.5 * np.clip((across[None, :] + down[:, None]) / 2, 0, 1)
    return paint * light[..., None]


def _photograph(pixels_HW3: NDArray, rng: Generator) -> NDArray[np.uint8]:
    """What a camera adds: uneven light, blur, grain, JPEG."""
    height, width = pixels_HW3.shape[:2]
    if rng.random() < 0.5:
        light = 1 + rng.uniform(0.05, 0.25) * smooth_noise(height, width, 3, rng)
        pixels_HW3 = pixels_HW3 * np.clip(light, 0.4, 1.6)[..., None]
    if rng.random() < 0.5:
        pixels_HW3 = cv2.GaussianBlur(pixels_HW3, (0, 0), rng.uniform(0.4, 1.5))
    if rng.random() < 0.5:
        grain = rng.normal(0, rng.uniform(1, 10), (height, width, 3))
        pixels_HW3 = pixels_HW3 + grain.astype(np.float32)
    pixels = np.clip(pixels_HW3, 0, 255).astype(np.uint8)
    if rng.random() < 0.4:
        _, coded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(35, 95))])
        pixels = np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), np.uint8)
    return pixels
