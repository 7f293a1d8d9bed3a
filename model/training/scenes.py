"""Procedural scenes: synthetic images with ground-truth label maps, for training without photographs.

A scene is painted back to front. Each pixel has a label at three levels: part, object, and group of similar objects.
The segments of all levels are valid ground-truth masks. The seed determines the scene completely.

Most objects are small, so each object is drawn only inside its own window of the canvas.

Shapes: H W scene size, h w size of the window of an object.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from maskmill.model.training.data import ImageCache, LabelledImage
from maskmill.model.training.textures import Paint, Window, smooth_noise, texture

PARTS, OBJECTS, GROUPS = range(3)
CACHE_BYTES = 2**29  # fits three quarters of the recipe's 1000 scenes at 384 pixels


class Scenes:
    """A data set of `count` scenes with consecutive seeds. A scene is drawn when it is first accessed.

    Drawing a scene takes as long as training on it, so each process caches scenes, up to `cache_bytes`.
    """

    def __init__(self, count: int, first_seed: int, longest_side: int, cache_bytes: int = CACHE_BYTES) -> None:
        self._count, self._first_seed, self._longest_side = count, first_seed, longest_side
        self._drawn = ImageCache(cache_bytes)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int, /) -> LabelledImage:
        scene = self._drawn.get(index)
        if scene is None:
            scene = draw_scene(self._first_seed + index, self._longest_side)
            self._drawn.add(index, scene)
        return scene


def draw_scene(seed: int, longest_side: int) -> LabelledImage:
    """Draws the scene of a seed. It has a label map for parts, objects and groups; each map labels every pixel."""
    rng = np.random.default_rng(seed)
    shorter = int(longest_side * rng.uniform(0.6, 1.0))
    height, width = (longest_side, shorter) if rng.random() < 0.4 else (shorter, longest_side)
    canvas = _Canvas(height, width, rng)
    _paint_background(canvas, rng)
    for _ in range(rng.integers(2, 10)):
        _THINGS[rng.integers(len(_THINGS))](canvas, rng)
    return LabelledImage(_photograph(canvas.pixels, rng), canvas.maps)


class _Stencil(NamedTuple):
    """An anti-aliased coverage mask (h, w), 0..255, and its window on the canvas. Coverage is 0 outside the window."""

    window: Window
    cover_hw: NDArray[np.uint8]


class _Canvas:
    """The pixels and label maps of a scene while it is painted."""

    def __init__(self, height: int, width: int, rng: Generator) -> None:
        self.pixels: NDArray = np.zeros((height, width, 3), np.float32)
        self.maps: NDArray[np.int32] = np.zeros((3, height, width), np.int32)
        self.window = Window(0, 0, width, height)
        self._rng = rng
        self._last_label = 0

    def new_label(self) -> int:
        self._last_label += 1
        return self._last_label

    def paint(self, stencil: _Stencil, paint: Paint, labels: tuple[int, ...]) -> None:
        """Blends paint into the stencil's pixels. Pixels with a coverage of more than half get the labels."""
        pixels = self.pixels[stencil.window.pixels]
        pixels += _by_channel(stencil.cover_hw * np.float32(1 / 255)) * (paint(stencil.window) - pixels)
        covered = stencil.cover_hw > 127
        for level, label in enumerate(labels):
            self.maps[level][stencil.window.pixels][covered] = label

    def shade(self, stencil: _Stencil) -> None:
        """Paints a blurred drop shadow for an object that is painted afterwards. The labels do not change."""
        dx, dy = self._rng.uniform(-0.04, 0.04, 2) * self.window.width
        blur, darkness = self._rng.uniform(1, 6), self._rng.uniform(0.2, 0.6)
        reach = int(3 * blur) + 2
        x, y, width, height = stencil.window
        window = _clip(x + dx - reach, y + dy - reach, x + dx + width + reach, y + dy + height + reach, self.window)
        if window is None:
            return
        move = np.array([[1, 0, x + dx - window.x], [0, 1, y + dy - window.y]], np.float64)
        shadow_hw = cv2.warpAffine(stencil.cover_hw, move, (window.width, window.height))
        shadow_hw = cv2.GaussianBlur(shadow_hw, (0, 0), blur, borderType=cv2.BORDER_REPLICATE)
        self.pixels[window.pixels] *= _by_channel(1 - shadow_hw * np.float32(darkness / 255))


def _paint_background(canvas: _Canvas, rng: Generator) -> None:
    """Paints one to four background regions, which resemble walls, floors, skies and hills."""
    height, width = canvas.maps.shape[1:]
    whole = np.full((height, width), 255, np.uint8)
    canvas.paint(_Stencil(canvas.window, whole), texture(height, width, rng), (canvas.new_label(),) * 3)
    for _ in range(rng.integers(0, 4)):
        # The new region is the part of the canvas on one side of a straight or wavy edge.
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
        stencil = _fill(np.concatenate([points, corners]), canvas.window)
        if stencil is not None:
            canvas.paint(stencil, texture(height, width, rng), (canvas.new_label(),) * 3)


def _draw_object(canvas: _Canvas, rng: Generator) -> None:
    height, width = canvas.maps.shape[1:]
    size = min(height, width) * np.exp(rng.uniform(np.log(0.04), np.log(0.5)))
    centre = rng.uniform([0, 0], [width, height])
    label = canvas.new_label()
    outline = random_outline(rng) * size + centre
    _paint_thing(canvas, outline, rng, label, label, texture(height, width, rng), int(rng.integers(1 << 30)))


def _draw_repeated(canvas: _Canvas, rng: Generator) -> None:
    """Paints a group of objects with the same shape, in a regular or jittered grid, like windows, coins or berries."""
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
            own = _tinted(paint, rng.normal(0, 8, 3).astype(np.float32))
            outline = shape * size * rng.uniform(0.85, 1.15) + centre
            _paint_thing(canvas, outline, rng, canvas.new_label(), group, own, same_parts)


def _paint_thing(
    canvas: _Canvas, outline: NDArray, rng: Generator, label: int, group: int, paint: Paint, parts_seed: int
) -> None:
    height, width = canvas.maps.shape[1:]
    stencil = _fill(outline, canvas.window)
    if stencil is None:
        return
    if rng.random() < 0.3:
        canvas.shade(stencil)
    if rng.random() < 0.4:
        paint = _shaded(paint, outline)
    canvas.paint(stencil, paint, (label, label, group))
    # All objects of a group use the same seed, so they have the same parts.
    parts_rng = np.random.default_rng(parts_seed)
    if parts_rng.random() < 0.5:
        return
    low, high = outline.min(axis=0), outline.max(axis=0)
    for _ in range(parts_rng.integers(1, 4)):
        size = (high - low).max() * parts_rng.uniform(0.1, 0.35)
        part = random_outline(parts_rng) * size + low + parts_rng.uniform(0.15, 0.85, 2) * (high - low)
        part_paint = texture(height, width, parts_rng)
        part_stencil = _fill(part, stencil.window)
        if part_stencil is None:
            continue
        inside_hw = np.minimum(part_stencil.cover_hw, _cover(stencil, part_stencil.window))
        if inside_hw.any():
            canvas.paint(_Stencil(part_stencil.window, inside_hw), part_paint, (canvas.new_label(), label, group))


def _draw_strokes(canvas: _Canvas, rng: Generator) -> None:
    """Paints a group of strokes, like poles, wires or branches. Each stroke is an object."""
    height, width = canvas.maps.shape[1:]
    paint, group = texture(height, width, rng), canvas.new_label()
    for _ in range(rng.integers(1, 5)):
        steps = rng.normal(0, width * rng.uniform(0.02, 0.12), (rng.integers(2, 8), 2)) + rng.normal(0, width * 0.06, 2)
        points = rng.uniform([0, 0], [width, height]) + np.cumsum(steps, axis=0)
        thickness = int(rng.integers(2, max(3, width // 40)))
        (x0, y0), (x1, y1) = points.min(axis=0), points.max(axis=0)
        window = _clip(x0 - thickness, y0 - thickness, x1 + thickness, y1 + thickness, canvas.window)
        if window is None:
            continue
        cover_hw = np.zeros((window.height, window.width), np.uint8)
        line = np.round(points).astype(np.int32) - window[:2]
        cv2.polylines(cover_hw, [line], False, 255, thickness, cv2.LINE_AA)
        if cover_hw.any():
            label = canvas.new_label()
            canvas.paint(_Stencil(window, cover_hw), paint, (label, label, group))


def _draw_text(canvas: _Canvas, rng: Generator) -> None:
    """Paints text on an optional plate. The text and the plate are two parts of one object, the sign."""
    height, width = canvas.maps.shape[1:]
    letters = "".join(rng.choice(list("ABCDEFGHKLMNPRSTXYZ023456789"), rng.integers(1, 7)))
    scale, thickness = rng.uniform(0.5, 2.5), int(rng.integers(1, 6))
    font = int(rng.choice([cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_TRIPLEX, cv2.FONT_HERSHEY_DUPLEX]))
    (text_width, text_height), _ = cv2.getTextSize(letters, font, scale, thickness)
    x, y = (int(v) for v in rng.uniform([0, text_height], [max(1, width - text_width), max(height, text_height)]))
    sign, margin = canvas.new_label(), int(rng.integers(4, 14))
    window = _clip(x - margin, y - text_height - margin, x + text_width + margin, y + margin, canvas.window)
    if window is None:
        return
    if rng.random() < 0.7:
        plate = _Stencil(window, np.full((window.height, window.width), 255, np.uint8))
        canvas.paint(plate, texture(height, width, rng), (canvas.new_label(), sign, sign))
    cover_hw = np.zeros((window.height, window.width), np.uint8)
    cv2.putText(cover_hw, letters, (x - window.x, y - window.y), font, scale, 255, thickness, cv2.LINE_AA)
    if cover_hw.any():
        canvas.paint(_Stencil(window, cover_hw), texture(height, width, rng), (canvas.new_label(), sign, sign))


# A single object is three times as likely as each other type.
_THINGS = (_draw_object, _draw_object, _draw_object, _draw_repeated, _draw_strokes, _draw_text)


_OUTLINES = ("blob", "blob", "ellipse", "polygon", "box", "crescent")


def random_outline(rng: Generator) -> NDArray:
    """Returns a closed outline (P, 2) around the origin with a radius of about 1 and a random type from `_OUTLINES`."""
    kind = _OUTLINES[rng.integers(len(_OUTLINES))]
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
    turn = rng.uniform(0, 2 * np.pi) * rng.integers(2)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return (points @ rotation.T).astype(np.float32)


def _clip(x0: float, y0: float, x1: float, y1: float, limit: Window) -> Window | None:
    """Returns the window of the pixels that a box overlaps inside `limit`, or None if there are none."""
    left, top = max(int(np.floor(x0)), limit.x), max(int(np.floor(y0)), limit.y)
    right = min(int(np.ceil(x1)) + 1, limit.x + limit.width)
    bottom = min(int(np.ceil(y1)) + 1, limit.y + limit.height)
    return Window(left, top, right - left, bottom - top) if left < right and top < bottom else None


def _fill(outline: NDArray, limit: Window) -> _Stencil | None:
    """Rasterises the interior of an outline inside `limit`. Returns None if it covers no pixel."""
    (x0, y0), (x1, y1) = outline.min(axis=0), outline.max(axis=0)
    # A margin of one pixel for the anti-aliased border.
    window = _clip(x0 - 1, y0 - 1, x1 + 1, y1 + 1, limit)
    if window is None:
        return None
    cover_hw = np.zeros((window.height, window.width), np.uint8)
    # Fixed-point coordinates with four fractional bits give subpixel positions.
    corners = np.round((outline - window[:2]) * 16).astype(np.int32)
    cv2.fillPoly(cover_hw, [corners], 255, cv2.LINE_AA, shift=4)
    return _Stencil(window, cover_hw) if cover_hw.any() else None


def _cover(stencil: _Stencil, window: Window) -> NDArray[np.uint8]:
    """Returns the coverage of a stencil in a window that lies inside the window of the stencil."""
    return stencil.cover_hw[Window(window.x - stencil.window.x, window.y - stencil.window.y, *window[2:]).pixels]


def _by_channel(values_hw: NDArray) -> NDArray:
    """Copies the values to three channels, (h, w, 3). NumPy broadcasting over channels takes several times as long."""
    return cv2.merge([values_hw] * 3)


def _tinted(paint: Paint, tint_3: NDArray) -> Paint:
    return lambda window: paint(window) + tint_3


def _shaded(paint: Paint, outline: NDArray) -> Paint:
    """Darkens the paint along the diagonal of the outline, which looks like light from one side on a round surface."""
    (x0, y0), (x1, y1) = outline.min(axis=0), outline.max(axis=0)

    def shaded(window: Window) -> NDArray:
        across_w = (np.arange(window.x, window.x + window.width, dtype=np.float32) - x0) / (x1 - x0 + 1)
        down_h = (np.arange(window.y, window.y + window.height, dtype=np.float32) - y0) / (y1 - y0 + 1)
        light_hw = 1.25 - 0.5 * np.clip((across_w[None, :] + down_h[:, None]) / 2, 0, 1)
        return paint(window) * _by_channel(light_hw)

    return shaded


def _photograph(pixels_HW3: NDArray, rng: Generator) -> NDArray[np.uint8]:
    """Simulates a camera: uneven illumination, blur, noise and JPEG compression."""
    height, width = pixels_HW3.shape[:2]
    if rng.random() < 0.5:
        light = 1 + rng.uniform(0.05, 0.25) * smooth_noise(height, width, 3, rng)
        pixels_HW3 = pixels_HW3 * _by_channel(np.clip(light, 0.4, 1.6))
    if rng.random() < 0.5:
        pixels_HW3 = cv2.GaussianBlur(pixels_HW3, (0, 0), rng.uniform(0.4, 1.5))
    if rng.random() < 0.5:
        grain = rng.standard_normal((height, width, 3), np.float32)
        pixels_HW3 = pixels_HW3 + grain * np.float32(rng.uniform(1, 10))
    pixels = np.clip(pixels_HW3, 0, 255).astype(np.uint8)
    if rng.random() < 0.4:
        _, coded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(35, 95))])
        pixels = np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), np.uint8)
    return pixels
