"""Draws figures as SVG. Colours come from classes of report.css, so that one drawing serves light and dark pages.

All sizes are in units of the drawing, which the page scales to the width of a column.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64] | NDArray[np.float64]

WIDTH, HEIGHT = 460, 270
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 46  # margins around the plotting area
ROW_HEIGHT, LABEL_WIDTH = 26, 150
CHARACTER_WIDTH = 6.4


def histogram(values: Numbers, edges: Sequence[float], x_label: str, y_label: str, hint: Callable[[int], str]) -> str:
    """Vertical bars between `edges`. `hint` gives the tooltip of a bar."""
    highest = float(values.max())
    y_ticks = ticks(0, highest, 4)
    top = max(highest, y_ticks[-1])
    x_at = _scale(edges[0], edges[-1], LEFT, WIDTH - RIGHT)
    y_at = _scale(0, top, HEIGHT - BOTTOM, TOP)
    parts = [_grid(y_ticks, y_at, LEFT, WIDTH - RIGHT)]
    for index, value in enumerate(values.tolist()):
        left, right = x_at(edges[index]), x_at(edges[index + 1])
        gap = min(1.0, (right - left) / 6)
        title = f"<title>{escape(hint(index))}</title>"
        # The transparent bar makes the tooltip of a low bar easy to reach.
        whole = f'<rect x="{left:.1f}" y="{TOP}" width="{right - left:.1f}" height="{HEIGHT - BOTTOM - TOP}"/>'
        bar = (
            f'<rect class="bar" x="{left + gap / 2:.1f}" y="{y_at(value):.1f}" width="{right - left - gap:.1f}" '
            f'height="{y_at(0) - y_at(value):.1f}"/>'
        )
        parts.append(f'<g class="hit">{title}{whole}{bar if value else ""}</g>')
    parts.append(_x_axis(ticks(edges[0], edges[-1], 6), x_at, HEIGHT - BOTTOM, LEFT, WIDTH - RIGHT))
    parts.append(_labels(x_label, y_label))
    return _svg(WIDTH, HEIGHT, f"{y_label} by {x_label}", parts)


def rows(values: Sequence[tuple[str, float, str]], x_label: str) -> str:
    """Horizontal bars, one per row of (label, value, text at the end of the bar)."""
    height = ROW_HEIGHT * len(values) + 40
    longest = max(len(text) for _, _, text in values) * CHARACTER_WIDTH
    right = WIDTH - 14 - longest
    x_at = _scale(0, max(1e-9, *(value for _, value, _ in values)), LABEL_WIDTH, right)
    parts: list[str] = []
    for index, (label, value, text) in enumerate(values):
        y = 8 + index * ROW_HEIGHT
        width = max(1.0 if value else 0.0, x_at(value) - LABEL_WIDTH)
        parts.append(f'<text x="{LABEL_WIDTH - 8}" y="{y + 14}" text-anchor="end">{escape(label)}</text>')
        parts.append(f'<rect class="bar" x="{LABEL_WIDTH}" y="{y + 1}" width="{width:.1f}" height="18"/>')
        parts.append(f'<text x="{LABEL_WIDTH + width + 6:.1f}" y="{y + 14}">{escape(text)}</text>')
    parts.append(f'<path class="axis" d="M{LABEL_WIDTH} 4V{height - 30}"/>')
    parts.append(f'<text class="label" x="{LABEL_WIDTH}" y="{height - 12}">{escape(x_label)}</text>')
    return _svg(WIDTH, height, x_label, parts)


def density(counts: NDArray[np.int64], x_label: str, y_label: str) -> str:
    """A map of counts [y, x] over the unit square, y downwards: the darker a cell, the more it counts."""
    side = HEIGHT - BOTTOM - TOP
    left = (WIDTH - side) / 2
    cell = side / len(counts)
    highest = int(counts.max())
    parts = [f'<rect class="ground" x="{left:.1f}" y="{TOP}" width="{side}" height="{side}"/>']
    for (row, column), count in np.ndenumerate(counts):
        if count:
            parts.append(
                f'<rect class="cell" x="{left + column * cell:.1f}" y="{TOP + row * cell:.1f}" width="{cell:.2f}" '
                f'height="{cell:.2f}" fill-opacity="{count / highest:.3f}"/>'
            )
    fractions = [0, 0.25, 0.5, 0.75, 1]
    parts.append(_x_axis(fractions, _scale(0, 1, left, left + side), HEIGHT - BOTTOM, left, left + side))
    y_at = _scale(0, 1, TOP, TOP + side)
    parts += [f'<text x="{left - 8:.1f}" y="{y_at(y) + 4:.1f}" text-anchor="end">{y:g}</text>' for y in fractions]
    parts.append(_labels(x_label, y_label, left - 44))
    return _svg(WIDTH, HEIGHT, f"{y_label} by {x_label}", parts)


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers from `low` to `high` (if equal: `low` + 1), `about` as many, in steps of 1, 2 or 5 times 10^n."""
    high = high if high > low else low + 1
    span = high - low
    power = 10.0 ** math.floor(math.log10(span / about))
    step = next(factor * power for factor in (1, 2, 5, 10) if span / (factor * power) <= about)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    return lambda value: start + (value - low) / (high - low or 1.0) * (end - start)


def _grid(at: Sequence[float], y_at: Callable[[float], float], left: float, right: float) -> str:
    lines = "".join(f"M{left} {y_at(y):.1f}H{right}" for y in at)
    texts = "".join(f'<text x="{left - 8}" y="{y_at(y) + 4:.1f}" text-anchor="end">{_short(y)}</text>' for y in at)
    return f'<path class="grid" d="{lines}"/>{texts}'


def _x_axis(at: Sequence[float], x_at: Callable[[float], float], y: float, left: float, right: float) -> str:
    marks = "".join(f"M{x_at(x):.1f} {y}v5" for x in at)
    texts = "".join(f'<text x="{x_at(x):.1f}" y="{y + 18}" text-anchor="middle">{_short(x)}</text>' for x in at)
    return f'<path class="axis" d="M{left:.1f} {y}H{right:.1f}{marks}"/>{texts}'


def _labels(x_label: str, y_label: str, y_label_x: float = 12) -> str:
    middle = (TOP + HEIGHT - BOTTOM) / 2
    turned = f'transform="rotate(-90 {y_label_x:.1f} {middle})" x="{y_label_x:.1f}" y="{middle}"'
    return (
        f'<text class="label" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_label)}'
        f'</text><text class="label" {turned} text-anchor="middle">{escape(y_label)}</text>'
    )


def _svg(width: int, height: int, label: str, parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def _short(value: float) -> str:
    """A number for an axis: 1500000 is 1.5M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * size or (abs(value) >= size and value % (size / 10) == 0):
            return f"{value / size:g}{letter}"
    return f"{value:g}"
