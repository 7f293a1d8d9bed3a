"""Writes figures of a run as one HTML file that loads nothing else."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np

from maskmill.pipeline.ledger import flatten
from maskmill.pipeline.records import STEPS
from maskmill.pipeline.sources.selection import counted
from maskmill.tables.report import svg
from maskmill.tables.report.figures import (
    AREA_EDGES,
    CONCAVITY_EDGES,
    IOU_EDGES,
    STABILITY_EDGES,
    Counts,
    Figures,
)
from maskmill.tables.report.samples import Picture

BARS = 40  # of the histogram of masks per image
ID_CHARACTERS = 200
MASKS_FOR_FINE_CELLS = 50_000  # with fewer, the map of centres has half as many cells per side
# No scripts, and nothing from the network: names and error texts in the page are not trusted.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
# What each filter drops, in the words of the published generator.
FILTER_LABELS = {
    "predicted_iou": "low predicted IoU",
    "stability_score": "low stability",
    "crop_edge": "at the edge of a crop",
    "box_nms": "duplicate (NMS)",
    "crop_nms": "duplicate in a crop",
    "coverage": "covers the image",
    "small_regions": "too small",
}


def render(uri: str, settings: Mapping[str, Any], figures: Figures, pictures: Sequence[Picture], problem: str) -> str:
    """The report as HTML. `problem` says why there are no pictures."""
    name = uri.rstrip("/").rpartition("/")[2] or uri
    style = files("maskmill.tables.report").joinpath("report.css").read_text(encoding="utf-8")
    body = "\n".join(_body(uri, name, settings, figures, pictures, problem))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f"<title>{escape(name)}: maskmill report</title>\n<style>\n{style}</style>\n</head>\n<body>\n{body}\n"
        "</body>\n</html>\n"
    )


def _body(
    uri: str,
    name: str,
    settings: Mapping[str, Any],
    figures: Figures,
    pictures: Sequence[Picture],
    problem: str,
) -> Iterator[str]:
    yield f"<h1>{escape(name)}</h1>"
    yield f"<p>{escape(uri)}, made from {escape(str(settings.get('source')))}. {_state(figures)}</p>"
    yield _tiles(figures)
    yield from _masks(figures)
    yield from _scores(figures)
    yield from _failures(figures)
    yield from _time(figures)
    yield from _samples(pictures, problem)
    yield from _settings(settings)
    yield "<footer>Written by <code>maskmill report</code>.</footer>"


def _state(figures: Figures) -> str:
    if figures.shards_done < figures.shards:
        return f"The run is not complete: {figures.shards_done:,} of {figures.shards:,} shards are done."
    return "The run is complete."


def _tiles(figures: Figures) -> str:
    ok = figures.status["ok"]
    failed = figures.images - ok
    tiles = [
        (f"{figures.images:,}", "images", ""),
        (f"{failed:,}", "of them failed", "bad" if failed else ""),
        (f"{figures.masks:,}", "masks", ""),
        (f"{figures.masks / ok:.1f}" if ok else "-", "masks per image", ""),
        (f"{figures.pixels / ok / 1e6:.2f}" if ok else "-", "megapixels per image", ""),
    ]
    cells = (f'<div class="tile {kind}"><b>{value}</b><span>{label}</span></div>' for value, label, kind in tiles)
    return f'<div class="tiles">{"".join(cells)}</div>'


def _masks(figures: Figures) -> Iterator[str]:
    yield "<h2>Masks</h2>"
    if not figures.masks:
        yield "<p>No masks yet, so there is nothing to draw.</p>"
        return
    yield '<div class="figures">'
    values, edges = _rebinned(figures.masks_per_image)
    yield _figure(
        "Masks per image",
        "How many images have how many masks. Failed images do not count.",
        svg.histogram(
            values,
            edges,
            "masks in an image",
            "images",
            lambda bar: f"{edges[bar]:.0f} to {edges[bar + 1] - 1:.0f} masks: {values[bar]:,} images",
        ),
    )
    yield _share_figure(
        "Mask size",
        "The square root of a mask's area divided by the image's area: 0.5 is a quarter of the image.",
        figures.area_share,
        AREA_EDGES,
        "relative size",
    )
    yield _share_figure(
        "Concavity",
        "1 minus the mask's area divided by the area of its convex hull: 0 is convex. "
        f"From {figures.concavity.sum():,} masks of {len(figures.sample):,} random images.",
        figures.concavity,
        CONCAVITY_EDGES,
        "concavity",
    )
    centres = figures.centres if figures.masks >= MASKS_FOR_FINE_CELLS else _halved(figures.centres)
    yield _figure(
        "Mask centres",
        "Where the centres of the masks' boxes lie, in images scaled to one size. The fullest cell has "
        f"{centres.max():,} masks.",
        svg.density(centres, "x, from left to right", "y, from top to bottom"),
    )
    yield "</div>"


def _scores(figures: Figures) -> Iterator[str]:
    yield "<h2>Scores and filters</h2>"
    if not figures.images:
        yield "<p>No images yet.</p>"
        return
    yield '<div class="figures">'
    if figures.masks:
        yield _share_figure(
            "Predicted IoU",
            "The model's estimate of the IoU of a mask with the true mask.",
            *_trimmed(figures.predicted_iou, IOU_EDGES),
            "predicted IoU",
        )
        yield _share_figure(
            "Stability score",
            "The IoU of the mask at a raised threshold with the mask at a lowered threshold.",
            *_trimmed(figures.stability_score, STABILITY_EDGES),
            "stability score",
        )
    candidates = figures.masks + sum(figures.dropped.values())
    rows = [
        (FILTER_LABELS[name], float(count), f"{count:,} ({_percent(count, candidates)})")
        for name, count in [*figures.dropped.items()]
    ]
    rows.append(("kept", float(figures.masks), f"{figures.masks:,} ({_percent(figures.masks, candidates)})"))
    yield _figure(
        "Filters",
        f"Of {candidates:,} candidate masks, those that each filter dropped, in the order of the filters.",
        svg.rows(rows, "masks"),
    )
    yield "</div>"


def _failures(figures: Figures) -> Iterator[str]:
    yield "<h2>Failures</h2>"
    failed = figures.images - figures.status["ok"]
    if not failed:
        yield "<p>No image failed.</p>"
    else:
        kinds = ", ".join(f"{count:,} {status}" for status, count in figures.status.items() if status != "ok")
        yield f"<p>{failed:,} of {figures.images:,} images: {kinds}. <code>maskmill retry</code> tries them again.</p>"
        heads = '<th class="number">images</th><th>step</th><th>reason</th><th>example</th>'
        yield f'<div class="scroll"><table><tr>{heads}</tr>'
        for row in figures.reasons:
            yield (
                f'<tr><td class="number">{row.images:,}</td><td class="short">{escape(row.step)}</td>'
                f"<td>{escape(row.reason)}</td><td>{escape(row.example[:ID_CHARACTERS])}</td></tr>"
            )
        if figures.other_reasons:
            yield f'<tr><td class="number">{figures.other_reasons:,}</td><td></td><td>other reasons</td><td></td></tr>'
        yield "</table></div>"
    if figures.left_out:
        yield f"<p>Not part of the run: {escape(counted(figures.left_out, 'images in tars'))}.</p>"


def _time(figures: Figures) -> Iterator[str]:
    yield "<h2>Time</h2>"
    if figures.throughput is None:
        yield "<p>Nothing is done yet.</p>"
        return
    images, bin_seconds = figures.throughput.images, figures.throughput.bin_seconds
    start = datetime.fromtimestamp(figures.throughput.start, UTC)
    total = bin_seconds * len(images)
    unit, seconds = next(((unit, size) for unit, size in _UNITS if total >= 2 * size), _UNITS[-1])
    per_minute = images / bin_seconds * 60
    edges = np.arange(len(images) + 1) * bin_seconds / seconds
    yield '<div class="figures">'
    yield _figure(
        "Throughput",
        f"Images per minute, by the times at which the files in masks/ were written: a copy of them has the times of "
        f"the copy. The first is of {start:%Y-%m-%d %H:%M:%S} UTC.",
        svg.histogram(
            per_minute,
            edges.tolist(),
            f"{unit} since the first file",
            "images per minute",
            lambda bar: f"{edges[bar]:.3g} to {edges[bar + 1]:.3g} {unit}: {images[bar]:,} images",
        ),
    )
    rows = [(step, figures.milliseconds[step], f"{figures.milliseconds[step]:,.1f} ms") for step in STEPS]
    yield _figure(
        "Steps",
        "Mean time of each step. The steps of several images overlap.",
        svg.rows(rows, "milliseconds per image"),
    )
    yield "</div>"


_UNITS = (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))


def _samples(pictures: Sequence[Picture], problem: str) -> Iterator[str]:
    yield "<h2>Samples</h2>"
    if problem:
        yield f"<p>The images cannot be shown: {escape(problem)}</p>"
        return
    if not pictures:
        yield "<p>No image has masks yet.</p>"
        return
    yield "<p>Random images with their masks. Small masks lie on top of large ones.</p>"
    yield '<div class="pictures">'
    for picture in pictures:
        name = escape(picture.image_id[:ID_CHARACTERS])
        caption = f"<figcaption>{name}, {picture.n_masks:,} masks</figcaption>"
        if picture.jpeg is None:
            yield f"<figure><p>{escape(picture.problem)}</p>{caption}</figure>"
        else:
            data = base64.b64encode(picture.jpeg).decode()
            yield f'<figure><img alt="{name}" src="data:image/jpeg;base64,{data}">{caption}</figure>'
    yield "</div>"


def _settings(settings: Mapping[str, Any]) -> Iterator[str]:
    yield '<h2>Settings</h2><div class="scroll"><table>'
    for name, value in flatten(settings).items():
        short = name.removeprefix("config.").removeprefix("generator.")
        yield f"<tr><th>{escape(short)}</th><td>{escape(str(value)[:ID_CHARACTERS])}</td></tr>"
    yield "</table></div>"


def _figure(title: str, explanation: str, drawing: str) -> str:
    return f"<figure><h3>{title}</h3><p>{explanation}</p>{drawing}</figure>"


def _share_figure(title: str, explanation: str, counts: Counts, edges: Any, x_label: str) -> str:
    total = counts.sum()
    return _figure(
        title,
        explanation,
        svg.histogram(
            100 * counts / max(1, total),
            edges.tolist(),
            x_label,
            "% of masks",
            lambda bar: f"{edges[bar]:.2f} to {edges[bar + 1]:.2f}: {_percent(counts[bar], total)}",
        ),
    )


def _rebinned(counts: Counts) -> tuple[Counts, list[float]]:
    """At most BARS bins of one round width, from counts of the numbers 0, 1, 2..."""
    used = int(np.flatnonzero(counts).max(initial=0)) + 1
    width = next(size for power in (1, 10, 100, 1000) for size in (power, 2 * power, 5 * power) if used <= size * BARS)
    bins = -(-used // width)
    padded = np.zeros(bins * width, np.int64)
    padded[:used] = counts[:used]
    return padded.reshape(bins, width).sum(axis=1), [float(edge) for edge in range(0, (bins + 1) * width, width)]


def _trimmed(counts: Counts, edges: Any) -> tuple[Counts, Any]:
    """Without the empty bins at both ends, to multiples of ten bins."""
    used = np.flatnonzero(counts)
    first, last = used[0] // 10 * 10, min(-(-(used[-1] + 1) // 10) * 10, len(counts))
    return counts[first:last], edges[first : last + 1]


def _halved(counts: Counts) -> Counts:
    rows, columns = (side // 2 for side in counts.shape)
    return counts.reshape(rows, 2, columns, 2).sum(axis=(1, 3))


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "0 %"
