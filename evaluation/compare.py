"""Compares the masks of two runs, A and B: matches the masks of each image one to one."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from maskmill.annotations.pairs import Pairs, read_pairs
from maskmill.filters.agreement import Agreement, agree
from maskmill.pipeline.ledger import flatten


def settings_that_differ(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings that differ: name -> (value in A, value in B). Nested names are joined by dots; None: not set."""
    in_a, in_b = flatten(a), flatten(b)
    names = sorted(in_a.keys() | in_b.keys())
    return {name: (in_a.get(name), in_b.get(name)) for name in names if in_a.get(name) != in_b.get(name)}


def compare_images(pairs: Pairs, threshold: float) -> Iterator[tuple[str, Agreement]]:
    """The id and the agreement of each image. Holds one part of each run in memory at a time.

    Raises ObjectError if a part or a mask is damaged, and StorageError if the store cannot be reached.
    """
    for masks in read_pairs(pairs):
        yield masks.image_id, agree(masks.counts_N, masks.counts_K, masks.height, masks.width, threshold)


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
