"""Whole runs without a model and without Ray: the same bytes every time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipeline.config import PRESETS, RunConfig
from pipeline.ledger import Identity, open_run, reopen_run
from pipeline.plan import Plan
from pipeline.records import Shard
from pipeline.sources import open_source
from pipeline.storage import open_storage
from pipeline.worker import Engine, Job, run_local
from tests.fakes import FakeEngine, frozen_clock

MAX_IMAGE_PIXELS = 1_000_000


# It remembers nothing: no image may tell it to do a thing once.
ENGINE = FakeEngine(Path("/nowhere"))


def begin(
    source: str | Path,
    out: str | Path,
    weights: str = "0" * 64,
    images_per_shard: int = 2,
    engine: Callable[[], Engine] = ENGINE,
) -> tuple[Job, Plan]:
    """What a run or its resumption begins with."""
    images = open_source(str(source))
    config = RunConfig("mini", "mini", PRESETS["mini"], max_image_pixels=MAX_IMAGE_PIXELS)
    identity = Identity(images.uri, weights, config)
    ledger, plan = open_run(open_storage(str(out), make=True), identity, images, images_per_shard)
    return Job(images, ledger, engine, MAX_IMAGE_PIXELS, frozen_clock), plan


def run(source: str | Path, out: str | Path, weights: str = "0" * 64, images_per_shard: int = 2) -> None:
    """A run from its start, or from where another left it, to its end."""
    job, plan = begin(source, out, weights, images_per_shard)
    run_local(job, plan, lambda progress: None)


def retry(out: str | Path) -> list[Shard]:
    """Does the images again that failed, and returns the shards these were."""
    identity, ledger, plan = reopen_run(open_storage(str(out)))
    shards = ledger.retries(plan)
    job = Job(open_source(identity.source), ledger, ENGINE, MAX_IMAGE_PIXELS, frozen_clock)
    run_local(job, shards, lambda progress: None)
    return shards
