"""Whole runs without a model and without Ray: the same bytes every time."""

from __future__ import annotations

from pathlib import Path

from pipeline.config import PRESETS, RunConfig
from pipeline.ledger import Identity, Ledger, open_run, reopen_run
from pipeline.plan import Plan
from pipeline.records import Shard
from pipeline.sources import open_source
from pipeline.storage import open_storage
from pipeline.worker import Engine, Job, run_local
from tests.fakes import FakeEngine, frozen_clock

MAX_IMAGE_PIXELS = 1_000_000


def begin(source: str | Path, out: str | Path, weights: str = "0" * 64, images_per_shard: int = 2) -> tuple[Job, Plan]:
    """What a run or its resumption begins with."""
    images = open_source(str(source))
    config = RunConfig("mini", "mini", PRESETS["mini"], max_image_pixels=MAX_IMAGE_PIXELS)
    identity = Identity(images.uri, weights, config)
    ledger, plan = open_run(open_storage(str(out), make=True), identity, images, images_per_shard)
    return _job(images.uri, ledger), plan


def run(source: str | Path, out: str | Path, weights: str = "0" * 64, images_per_shard: int = 2) -> None:
    """A run from its start, or from where another left it, to its end."""
    job, plan = begin(source, out, weights, images_per_shard)
    run_local(job, plan, lambda progress: None)


def retry(out: str | Path) -> list[Shard]:
    """Does the images again that failed, and returns the shards these were."""
    identity, ledger, plan = reopen_run(open_storage(str(out)))
    shards = ledger.retries(plan)
    run_local(_job(identity.source, ledger), shards, lambda progress: None)
    return shards


def _job(source: str, ledger: Ledger) -> Job:
    engine: Engine = FakeEngine(Path("/nowhere"))  # it remembers nothing: no image tells it to do a thing once
    return Job(open_source(source), ledger, lambda: engine, MAX_IMAGE_PIXELS, frozen_clock)
