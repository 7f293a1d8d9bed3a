"""Whole runs without a model and without Ray: the same bytes every time; and what a run has made."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskmill.pipeline.config import PRESETS, DecodingConfig, RunConfig
from maskmill.pipeline.engine import Engine
from maskmill.pipeline.finished import open_finished_run
from maskmill.pipeline.job import Job
from maskmill.pipeline.ledger import Identity, open_run, reopen_run
from maskmill.pipeline.plan import PLAN_KEY, Plan
from maskmill.pipeline.records import Shard
from maskmill.pipeline.sources import open_planned, open_source, source_uri
from maskmill.pipeline.storage import Storage, open_storage
from maskmill.pipeline.table import read_parquet
from maskmill.pipeline.worker import run_local
from tests.fakes import FROZEN, FakeEngine

DECODING = DecodingConfig(max_image_pixels=1_000_000)


Row = tuple[Any, ...]

# It remembers nothing: no image may tell it to do a thing once.
ENGINE = FakeEngine(Path("/nowhere"))


def begin(
    source: str | Path,
    out: str | Path,
    weights: str = "0" * 64,
    images_per_shard: int = 2,
    engine: Callable[[], Engine] = ENGINE,
    decoding: DecodingConfig = DECODING,
    moved_to: str | None = None,
) -> tuple[Job, Plan]:
    """What a run or its resumption begins with."""
    storage = open_storage(str(out), make=True)
    images = None if storage.exists(PLAN_KEY) else open_source(str(source))
    config = RunConfig("mini", "mini", PRESETS["mini"], decoding=decoding)
    identity = Identity(source_uri(str(source)), weights, config)
    ledger, plan = open_run(storage, identity, images, images_per_shard)
    plan = plan.at(moved_to)
    return Job(open_planned(plan.source), ledger, engine, decoding, **FROZEN), plan


def run(
    source: str | Path,
    out: str | Path,
    weights: str = "0" * 64,
    images_per_shard: int = 2,
    decoding: DecodingConfig = DECODING,
    moved_to: str | None = None,
) -> None:
    """A run from its start, or from where another left it, to its end."""
    job, plan = begin(source, out, weights, images_per_shard, decoding=decoding, moved_to=moved_to)
    run_local(job, plan, lambda progress: None)


def retry(out: str | Path, moved_to: str | None = None) -> list[Shard]:
    """Does the images again that failed, and returns the shards these were."""
    identity, ledger = reopen_run(open_storage(str(out)))
    run = open_finished_run(ledger.storage, moved_to)
    shards = run.retries()
    job = Job(open_planned(run.plan.source), ledger, ENGINE, identity.config.decoding, **FROZEN)
    run_local(job, shards, lambda progress: None)
    return shards


@dataclass(frozen=True)
class Tables:
    """What a run has made, by image: what depends on the image alone."""

    images: dict[str, list[Row]]
    masks: dict[str, list[Row]]

    @staticmethod
    def of(storage: Storage) -> Tables:
        """The tables in an output as any reader sees them."""
        columns = ["image_id", "image_height", "image_width", "sha256", "n_masks", "status"]
        return Tables(_by_image(storage, "images/", columns), _by_image(storage, "masks/", None))


def _by_image(storage: Storage, prefix: str, columns: list[str] | None) -> dict[str, list[Row]]:
    rows: defaultdict[str, list[Row]] = defaultdict(list)
    for item in storage.list(prefix):
        for row in read_parquet(storage.read(item.key), columns).to_pylist():
            rows[row["image_id"]].append(tuple(row.values()))
    return rows
