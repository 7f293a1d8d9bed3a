"""Collects the figures of a report in one pass over the tables of a run. Their size does not depend on the run's."""

# pyarrow ships no types.
# pyright: standard
from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from maskmill.filters.names import FILTERS
from maskmill.pipeline.finished import Run
from maskmill.pipeline.parts import shard_of
from maskmill.pipeline.records import STEPS, Shard
from maskmill.tables.report.concavity import concavity

Counts = NDArray[np.int64]

MOST_MASKS = 10_000  # images with more masks are counted as this many
CENTRE_CELLS = 48  # per side, of the map of mask centres
SAMPLE_IMAGES = 200  # the masks of these are decoded
SAMPLE_MASKS = 5_000
TIME_BINS = 60
# Distinct reasons to count and to keep; the others are counted together. Reasons can name files, so each may be new.
REASONS_COUNTED = 10_000
REASONS_KEPT = 30
REASON_CHARACTERS = 300

AREA_EDGES = np.linspace(0, 1, 51)
CONCAVITY_EDGES = np.linspace(0, 1, 51)
IOU_EDGES = np.linspace(0, 1.1, 111)
STABILITY_EDGES = np.linspace(0, 1, 101)
MASK_COLUMNS = (
    *("image_height", "image_width", "area", "bbox_x", "bbox_y", "bbox_w", "bbox_h"),
    *("predicted_iou", "stability_score"),
)


@dataclass(frozen=True)
class Reason:
    """Images that failed in the same step for the same reason."""

    step: str
    reason: str
    images: int
    example: str  # the id of one of the images


@dataclass(frozen=True)
class SampledImage:
    """An image with masks, chosen at random from all of them: its shard as planned, its row of the images table."""

    shard: Shard
    row: Mapping[str, Any]


@dataclass(frozen=True)
class Throughput:
    """Images that were committed in equal intervals of time."""

    start: float  # seconds since the epoch: the first commit
    bin_seconds: float
    images: Counts  # (bins,)


@dataclass
class Figures:
    """All figures of a run. Histograms are counts; their edges are the constants above."""

    shards: int = 0
    shards_done: int = 0
    planned_images: int | None = None  # None if the source has tars, where it is known after reading them
    images: int = 0
    status: Counter[str] = field(default_factory=Counter[str])
    masks_per_image: Counts = field(default_factory=lambda: np.zeros(MOST_MASKS + 1, np.int64))  # of ok images
    pixels: int = 0  # of ok images
    milliseconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STEPS, 0.0))  # means over images
    dropped: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FILTERS, 0))
    reasons: list[Reason] = field(default_factory=list[Reason])  # the most frequent first
    other_reasons: int = 0  # images with a reason that is not in `reasons`
    left_out: Counter[str] = field(default_factory=Counter[str])
    masks: int = 0
    area_share: Counts = field(default_factory=lambda: np.zeros(len(AREA_EDGES) - 1, np.int64))
    predicted_iou: Counts = field(default_factory=lambda: np.zeros(len(IOU_EDGES) - 1, np.int64))
    stability_score: Counts = field(default_factory=lambda: np.zeros(len(STABILITY_EDGES) - 1, np.int64))
    centres: Counts = field(default_factory=lambda: np.zeros((CENTRE_CELLS, CENTRE_CELLS), np.int64))  # [y, x]
    concavity: Counts = field(default_factory=lambda: np.zeros(len(CONCAVITY_EDGES) - 1, np.int64))
    sample: list[SampledImage] = field(default_factory=list[SampledImage])  # in random order
    throughput: Throughput | None = None  # None if nothing is committed


Track = Callable[[str, str, int, Iterator[Any]], Iterator[Any]]


def collect(run: Run, track: Track) -> Figures:
    """Reads the run. `track(what, unit, total, items)` yields the items and may show progress.

    Raises ObjectError if a part is damaged and StorageError if the store cannot be reached.
    """
    times = run.commit_times()
    figures = Figures(shards=len(run.plan), planned_images=run.plan.n_images)
    images = ImageCounter(figures)
    committed = Counter[str]()
    shards = len({shard_of(part) for part in times})
    for done in track("reading images", "shards", shards, run.done_shards()):
        figures.shards_done += 1
        figures.left_out.update(done.left_out)
        images.add(done.shard, done.images)
        committed.update(done.images["shard"].to_pylist())
    images.finish()
    for part in track("reading masks", "parts", len(times), run.mask_parts(MASK_COLUMNS)):
        add_masks(figures, part)
    figures.throughput = throughput(committed, times)
    _add_concavity(figures, run, track)
    return figures


class ImageCounter:
    """Adds rows of the images table to figures."""

    def __init__(self, figures: Figures) -> None:
        self._figures = figures
        self._random = np.random.default_rng(0)
        self._sample: list[tuple[float, SampledImage]] = []  # a random number with each
        self._reasons = Counter[tuple[str, str]]()
        self._examples: dict[tuple[str, str], str] = {}
        self._timed = Counter[str]()

    def add(self, shard: Shard, images: pa.Table) -> None:
        """Counts the images of a shard."""
        figures = self._figures
        ok = images.filter(pc.field("status") == "ok")
        n_masks = ok["n_masks"].to_numpy()
        figures.images += len(images)
        figures.status.update(images["status"].to_pylist())
        figures.masks_per_image += np.bincount(n_masks.clip(0, MOST_MASKS), minlength=MOST_MASKS + 1)
        figures.pixels += int((ok["image_height"].to_numpy().astype(np.int64) * ok["image_width"].to_numpy()).sum())
        for name in FILTERS:
            figures.dropped[name] += sum(ok[f"dropped_{name}"].drop_null().to_pylist())
        for step in STEPS:
            self._timed[step] += len(images) - images[f"{step}_ms"].null_count
            figures.milliseconds[step] += sum(images[f"{step}_ms"].drop_null().to_pylist())
        self._add_to_sample(shard, ok, n_masks)
        failed = images.filter(pc.field("status") != "ok").select(["image_id", "error_step", "error"])
        for row in failed.to_pylist():
            self._add_reason(row["error_step"] or "", row["error"] or "", row["image_id"])

    def finish(self) -> None:
        """Completes the figures after the last rows."""
        figures = self._figures
        for step, images in self._timed.items():
            figures.milliseconds[step] /= max(1, images)
        figures.sample = [image for _, image in sorted(self._sample, key=lambda pair: pair[0])]
        figures.reasons = [
            Reason(*key, images, self._examples[key]) for key, images in self._reasons.most_common(REASONS_KEPT)
        ]
        kept = sum(reason.images for reason in figures.reasons)
        figures.other_reasons = figures.images - figures.status["ok"] - kept

    def _add_to_sample(self, shard: Shard, ok: pa.Table, n_masks: Counts) -> None:
        number = np.where(n_masks > 0, self._random.random(len(ok)), 1.0)
        worst = self._sample[-1][0] if len(self._sample) == SAMPLE_IMAGES else 1.0
        for row in np.flatnonzero(number < worst).tolist():
            sampled = SampledImage(shard, ok.slice(row, 1).to_pylist()[0])
            self._sample.append((float(number[row]), sampled))
        self._sample.sort(key=lambda pair: pair[0])
        del self._sample[SAMPLE_IMAGES:]

    def _add_reason(self, step: str, reason: str, image_id: str) -> None:
        key = step, reason[:REASON_CHARACTERS]
        if key in self._reasons or len(self._reasons) < REASONS_COUNTED:
            self._reasons[key] += 1
            self._examples.setdefault(key, image_id)


def add_masks(figures: Figures, masks: pa.Table) -> None:
    """Adds rows of the masks table, with MASK_COLUMNS, to the figures."""
    height, width, area, x, y, w, h, iou, stability = (masks[name].to_numpy() for name in MASK_COLUMNS)
    pixels = np.maximum(1, height.astype(np.int64) * width)
    figures.masks += len(masks)
    figures.area_share += _histogram(np.sqrt(area / pixels), AREA_EDGES)
    figures.predicted_iou += _histogram(iou, IOU_EDGES)
    figures.stability_score += _histogram(stability, STABILITY_EDGES)
    # w is x1 - x0 of inclusive corners, so the middle of the pixels is half a pixel further.
    row, column = (
        ((low + (side + 1) / 2) / np.maximum(1, full) * CENTRE_CELLS).astype(np.int64).clip(0, CENTRE_CELLS - 1)
        for low, side, full in ((y, h, height), (x, w, width))
    )
    flat = np.bincount(row * CENTRE_CELLS + column, minlength=CENTRE_CELLS**2)
    figures.centres += flat.reshape(CENTRE_CELLS, CENTRE_CELLS)


def throughput(committed: Counter[str], times: dict[str, float]) -> Throughput | None:
    """Images over time, from the number of images in each part and the time of its commit."""
    parts = [part for part in committed if part in times]
    if not parts:
        return None
    at = np.array([times[part] for part in parts])
    seconds = max(1.0, at.max() - at.min())
    # As many bins as the parts can fill: one part may hold all the images of a bin.
    bins = int(np.clip(len(parts) // 4, 1, TIME_BINS))
    images = np.array([committed[part] for part in parts])
    which = ((at - at.min()) / seconds * bins).astype(np.int64).clip(0, bins - 1)
    return Throughput(float(at.min()), seconds / bins, np.bincount(which, images, bins).astype(np.int64))


def _add_concavity(figures: Figures, run: Run, track: Track) -> None:
    left = SAMPLE_MASKS
    for sampled in track("measuring shapes", "images", len(figures.sample), iter(figures.sample)):
        if left > 0:
            image = run.image(sampled.shard, sampled.row)
            counts = image.rle_counts[:left]
            values = [concavity(text, image.height, image.width) for text in counts]
            figures.concavity += _histogram(np.array(values), CONCAVITY_EDGES)
            left -= len(counts)


def _histogram(values: NDArray[Any], edges: NDArray[np.float64]) -> Counts:
    """Counts per bin. Values outside the edges count in the first or last bin; NaN does not count."""
    values = values[~np.isnan(values)]
    return np.histogram(values.clip(edges[0], edges[-1]), edges)[0]
