"""Compares the masks of two runs, A and B: pairs their images by id and matches the masks one to one.

Shapes: an image of H W pixels has N masks in A and K in B, as COCO's compressed counts.
"""

# pyarrow ships no types: strict checking would find every line that touches it unknown.
# pyright: standard
from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from maskmill.annotations import AnnotationError
from maskmill.evaluation import overlap
from maskmill.pipeline.errors import RunMismatchError
from maskmill.pipeline.finished import Run, open_finished_run
from maskmill.pipeline.ledger import flatten
from maskmill.pipeline.storage import Storage

_COLUMNS = ("image_id", "shard", "image_height", "image_width", "sha256", "status")
_IMAGES_AT_ONCE = 1024  # rows of the table that are Python objects at a time


@dataclass(frozen=True, eq=False)
class RunIndex:
    """The images that a run has processed so far, without their masks: about 150 bytes each."""

    run: Run
    shards_done: int
    images: pa.Table  # some columns of IMAGES; one row per image

    def __len__(self) -> int:
        return len(self.images)

    @property
    def failed(self) -> int:
        """The number of images that failed or were quarantined."""
        return len(self.images.filter(pc.field("status") != "ok"))


def index_run(storage: Storage) -> RunIndex:
    """Reads the images of the run in `storage`.

    Raises RunMismatchError if there is no run, AnnotationError if none of its shards is done, ObjectError if a part is
    damaged, and StorageError if the store cannot be reached.
    """
    run = open_finished_run(storage)
    tables = [done.images.select(_COLUMNS) for done in run.done_shards()]
    if not tables:
        raise AnnotationError(f"{storage.uri}: no shard of this run is done yet")
    return RunIndex(run, len(tables), pa.concat_tables(tables))


def settings_that_differ(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings that differ: name -> (value in A, value in B). Nested names are joined by dots; None: not set."""
    in_a, in_b = flatten(a), flatten(b)
    names = sorted(in_a.keys() | in_b.keys())
    return {name: (in_a.get(name), in_b.get(name)) for name in names if in_a.get(name) != in_b.get(name)}


@dataclass(frozen=True)
class LeftOut:
    """Images that cannot be compared, for one reason."""

    images: int
    first: tuple[str, ...]  # ids


@dataclass(frozen=True, eq=False)
class Pairs:
    """The images that can be compared, sorted by part, so that each part is read once."""

    a: RunIndex
    b: RunIndex
    table: pa.Table  # the columns of both indexes, with the suffixes _A and _B
    left_out: Mapping[str, LeftOut]  # by reason: the first one that applies

    def __len__(self) -> int:
        return len(self.table)


def pair_images(a: RunIndex, b: RunIndex, limit: int) -> Pairs:
    """Pairs images by id. `left_out` names at most `limit` images per reason.

    Raises RunMismatchError if the runs have no image in common.
    """
    pairs = a.images.join(
        b.images, "image_id", join_type="full outer", left_suffix="_A", right_suffix="_B", use_threads=False
    ).sort_by([("shard_A", "ascending"), ("shard_B", "ascending"), ("image_id", "ascending")])
    failed_a, failed_b = (pc.field(f"status_{run}") != "ok" for run in "AB")
    other_bytes, other_height, other_width = (
        # Unknown in one of the runs, as after an import, is not a difference.
        (pc.field(f"{column}_A") != pc.field(f"{column}_B"))
        & pc.field(f"{column}_A").is_valid()
        & pc.field(f"{column}_B").is_valid()
        for column in ("sha256", "image_height", "image_width")
    )
    reasons = {
        "only in A": pc.field("shard_B").is_null(),
        "only in B": pc.field("shard_A").is_null(),
        "failed in both": failed_a & failed_b,
        "failed in A": failed_a,
        "failed in B": failed_b,
        "another picture": other_bytes | other_height | other_width,
    }
    left_out: dict[str, LeftOut] = {}
    for reason, holds in reasons.items():
        image_ids = pairs.filter(holds)["image_id"]
        left_out[reason] = LeftOut(len(image_ids), tuple(image_ids[:limit].to_pylist()))
        pairs = pairs.filter(~holds)
    if left_out["only in A"].images == len(a) and left_out["only in B"].images == len(b):
        ids = " and ".join(f"{index.images['image_id'][0]} in {index.run.storage.uri}" for index in (a, b))
        raise RunMismatchError(f"the runs have no image in common: example ids are {ids}")
    return Pairs(a, b, pairs, left_out)


@dataclass(frozen=True)
class Agreement:
    """How far the masks of some images agree. Agreements can be added."""

    images: int = 0
    masks_a: int = 0
    masks_b: int = 0
    matched: int = 0  # pairs of masks
    iou_sum: float = 0.0  # over the pairs
    same_count: int = 0  # images with equal numbers of masks in A and B
    identical: int = 0  # images with byte-identical masks in the same order

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    @property
    def shares(self) -> dict[str, float | None]:
        """Ratios of the counts, each from 0 to 1. None if the denominator is 0."""
        return {
            "matched": _ratio(2 * self.matched, self.masks_a + self.masks_b),
            "matched_of_a": _ratio(self.matched, self.masks_a),
            "matched_of_b": _ratio(self.matched, self.masks_b),
            "mean_iou": _ratio(self.iou_sum, self.matched),
            "same_count": _ratio(self.same_count, self.images),
            "identical": _ratio(self.identical, self.images),
        }


def _ratio(part: float, whole: int) -> float | None:
    return part / whole if whole else None


def compare_images(pairs: Pairs, threshold: float) -> Iterator[tuple[str, Agreement]]:
    """The id and the agreement of each image. Holds one part of each run in memory at a time.

    Raises ObjectError if a part or a mask is damaged, and StorageError if the store cannot be reached.
    """
    read_a, read_b = pairs.a.run.rle_reader(), pairs.b.run.rle_reader()
    for batch in pairs.table.to_batches(max_chunksize=_IMAGES_AT_ONCE):
        for row in batch.to_pylist():
            image_id, height, width = row["image_id"], row["image_height_A"], row["image_width_A"]
            counts_N, counts_K = read_a(row["shard_A"], image_id), read_b(row["shard_B"], image_id)
            pairs.a.run.check_rles(image_id, counts_N, height, width)
            pairs.b.run.check_rles(image_id, counts_K, height, width)
            yield image_id, agree(counts_N, counts_K, height, width, threshold)


def agree(counts_N: Sequence[bytes], counts_K: Sequence[bytes], height: int, width: int, threshold: float) -> Agreement:
    """The agreement of the masks of one image. Two masks can match if their IoU is at least `threshold`."""
    identical = counts_N == counts_K
    iou_M = np.ones(len(counts_N)) if identical else match(overlap.iou(counts_N, counts_K, height, width), threshold)
    return Agreement(
        images=1,
        masks_a=len(counts_N),
        masks_b=len(counts_K),
        matched=len(iou_M),
        iou_sum=float(iou_M.sum()),
        same_count=int(len(counts_N) == len(counts_K)),
        identical=int(identical),
    )


def match(iou_NK: NDArray[np.float64], threshold: float) -> NDArray[np.float64]:
    """The IoU (M,) of M pairs: greedy matching, best IoU first, each mask in one pair, down to `threshold`."""
    n, k = np.nonzero(iou_NK >= threshold)
    matched: list[float] = []
    taken_n: set[int] = set()
    taken_k: set[int] = set()
    for pair in np.argsort(-iou_NK[n, k], kind="stable"):
        row, column = int(n[pair]), int(k[pair])
        if row not in taken_n and column not in taken_k:
            taken_n.add(row)
            taken_k.add(column)
            matched.append(iou_NK[row, column])
    return np.array(matched, np.float64)


def summarise(agreements: Iterable[tuple[str, Agreement]], limit: int) -> tuple[Agreement, list[tuple[str, Agreement]]]:
    """The sum of all agreements, and up to `limit` images that agree least: by the share of matched masks, then by IoU.

    Identical images are not listed.
    """
    total = Agreement()
    worst: list[tuple[str, Agreement]] = []
    for image_id, agreement in agreements:
        total += agreement
        if not agreement.identical:
            insort(worst, (image_id, agreement), key=_rank)
            del worst[limit:]
    return total, worst


def _rank(image: tuple[str, Agreement]) -> tuple[float, float, str]:
    image_id, agreement = image
    return agreement.shares["matched"] or 0, agreement.shares["mean_iou"] or 0, image_id
