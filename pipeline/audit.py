"""Audits a fast or half run: processes a share of its images again in exact precision, and compares the masks."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass

from maskmill.filters.agreement import Agreement, agree
from maskmill.pipeline.config import Precision
from maskmill.pipeline.engine import Engine
from maskmill.pipeline.records import Clock, ImageMasks, Shard, StepTimer
from maskmill.pipeline.views import ResizedImage

MATCH_IOU = 0.9
# The first image of each of so many shards is audited whatever the share, so that a small run is audited too.
FIRST_SHARDS = 10
# The agreement that docs/0008 asks of fast precision, as shares of masks and of images.
MIN_MATCHED = 0.99
MIN_SAME_COUNT = 0.95


@dataclass(frozen=True)
class Audit:
    """Chooses the images of an audit. Picklable. The choice depends on image ids only, so it can be repeated."""

    share: float  # of all images
    first_shards: frozenset[int]  # at least one image of each is chosen
    make_exact_engine: Callable[[], Engine]
    precision: Precision = "fast"  # of the run

    def chooses(self, shard: Shard, image_id: str, chosen: int) -> bool:
        """Whether an image is audited. `chosen` images of its shard have been chosen before."""
        digest = hashlib.blake2b(image_id.encode(), digest_size=8).digest()
        return int.from_bytes(digest) < self.share * 2**64 or (chosen == 0 and shard.index in self.first_shards)


class Auditor:
    """Audits the images of a worker. Builds the exact engine for the first one. Thread-safe."""

    def __init__(self, audit: Audit) -> None:
        self.audit = audit
        self._engine: Engine | None = None
        self._lock = threading.Lock()

    def compare(self, image: ResizedImage, masks: ImageMasks, clock: Clock) -> Agreement:
        """The agreement of masks of the run (A) with those of the exact engine (B)."""
        with self._lock:
            self._engine = self._engine or self.audit.make_exact_engine()
            exact = self._engine.generate(image, StepTimer(clock))
        return agree(masks.rle_counts, exact.rle_counts, image.height, image.width, MATCH_IOU)
