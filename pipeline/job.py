"""The inputs of a run, as every worker gets them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from maskmill.pipeline.audit import Audit
from maskmill.pipeline.config import DecodingConfig
from maskmill.pipeline.engine import Engine
from maskmill.pipeline.images import decode_image
from maskmill.pipeline.ledger import Ledger
from maskmill.pipeline.records import Clock, DecodedImage, process_name
from maskmill.pipeline.sources import Source


@dataclass(frozen=True)
class Job:
    """The inputs that all workers of a run share. Picklable."""

    source: Source
    ledger: Ledger
    make_engine: Callable[[], Engine]
    decoding: DecodingConfig
    clock: Clock = time.perf_counter
    wall_clock: Clock = time.time  # seconds since 1970
    worker_name: Callable[[], str] = process_name
    decode: Callable[[bytes, DecodingConfig], DecodedImage] = decode_image
    audit: Audit | None = None
