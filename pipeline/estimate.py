"""Estimates the time and cost of a run from a sample of its images, measured by a probe or by a former run.

The output of the run can hold its estimate, so that the run can be compared with it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from maskmill.pipeline.errors import StorageError
from maskmill.pipeline.records import STEPS
from maskmill.pipeline.storage import Storage
from maskmill.pipeline.table import Footer

ESTIMATE_KEY = "_estimate.json"
INTERVAL = (5.0, 95.0)  # percentiles: a 90 % interval
RESAMPLES = 2000
MIN_FIT = 8  # images


@dataclass(frozen=True, eq=False)
class Sample:
    """P parts with N images that were processed without failure."""

    part_images: NDArray[np.float64]  # (P,)
    part_seconds: NDArray[np.float64]  # (P,) that the worker spent on the part
    image_seconds: NDArray[np.float64]  # (N,) sum over all steps; steps of different images overlap
    megapixels: NDArray[np.float64]  # (N,)
    masks: NDArray[np.float64]  # (N,)

    @staticmethod
    def of(footers: Iterable[Footer]) -> Sample:
        """The sample in the footers of parts. Parts that do not say when they were made are left out."""
        parts: list[tuple[int, float]] = []
        images: list[tuple[float, float, float]] = []
        for footer in footers:
            if footer.work is None or not len(footer.images):
                continue
            parts.append((len(footer.images), footer.work.ended - footer.work.began))
            for row in footer.images.to_pylist():
                if row["status"] == "ok":
                    seconds = sum(row[f"{step}_ms"] or 0.0 for step in STEPS) / 1000
                    images.append((seconds, row["image_height"] * row["image_width"] / 1e6, row["n_masks"]))
        part_columns = np.array(parts, np.float64).reshape(-1, 2).T
        return Sample(*part_columns, *np.array(images, np.float64).reshape(-1, 3).T)

    @property
    def images(self) -> int:
        return int(self.part_images.sum())


@dataclass(frozen=True)
class Interval:
    """An estimate with its 90 % interval. All three are equal if the sample has one part."""

    mean: float
    low: float
    high: float

    def times(self, factor: float) -> Interval:
        return Interval(factor * self.mean, factor * self.low, factor * self.high)


@dataclass(frozen=True)
class Fit:
    """seconds of an image = constant + per_megapixel * megapixels + per_mask * masks, by least squares."""

    constant: float
    per_megapixel: float
    per_mask: float
    explained: float  # share of the variance between images, 0..1


def seconds_per_image(sample: Sample, seed: int = 0) -> Interval:
    """The time that one worker needs per image, all steps overlapped as in a run.

    The interval is a bootstrap over parts, because the images of a part are alike and are processed together.
    """
    mean = sample.part_seconds.sum() / sample.part_images.sum()
    drawn = np.random.default_rng(seed).integers(0, len(sample.part_images), (RESAMPLES, len(sample.part_images)))
    resampled = sample.part_seconds[drawn].sum(axis=1) / sample.part_images[drawn].sum(axis=1)
    low, high = np.percentile(resampled, INTERVAL)
    return Interval(float(mean), float(low), float(high))


def fit(sample: Sample) -> Fit | None:
    """How the time of an image depends on its size and its number of masks. None if the sample cannot tell."""
    terms = np.stack([np.ones_like(sample.masks), sample.megapixels, sample.masks], axis=1)
    if len(terms) < MIN_FIT or np.linalg.matrix_rank(terms) < terms.shape[1]:
        return None
    weights, *_ = np.linalg.lstsq(terms, sample.image_seconds, rcond=None)
    variance = sample.image_seconds.var()
    explained = 1 - (sample.image_seconds - terms @ weights).var() / variance if variance else 0.0
    constant, per_megapixel, per_mask = map(float, weights)
    return Fit(constant, per_megapixel, per_mask, float(explained))


def duration(per_image: Interval, images: int, shards: int, workers: int) -> Interval:
    """Seconds for `workers` workers, without their start. At least the time that one worker needs for one shard."""
    return per_image.times(max(images / workers, images / shards))


@dataclass(frozen=True)
class Estimate:
    """What a run is expected to take, as its output stores it. Times are seconds."""

    seconds_per_image: Interval  # of one worker
    seconds: Interval  # of the run, without the start of the workers
    workers: int

    def write(self, storage: Storage) -> None:
        """Makes it the estimate of the run in `storage`, which may begin later."""
        storage.put(ESTIMATE_KEY, (json.dumps(asdict(self), indent=2) + "\n").encode())


def read_estimate(storage: Storage) -> Estimate | None:
    """The estimate of the run in `storage`; None if there is none. Raises StorageError if it is damaged."""
    if not storage.exists(ESTIMATE_KEY):
        return None
    try:
        fields = json.loads(storage.read(ESTIMATE_KEY))
        per_image, seconds = Interval(**fields["seconds_per_image"]), Interval(**fields["seconds"])
        return Estimate(per_image, seconds, fields["workers"])
    except (ValueError, TypeError, KeyError) as error:
        raise StorageError(f"{storage.uri}/{ESTIMATE_KEY}: damaged ({error}): delete it") from error
