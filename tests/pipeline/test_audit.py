"""Audits: which images are chosen, and that a fast engine with wrong masks is found."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from maskmill.jobs.run import run_job
from maskmill.model.errors import CheckpointError
from maskmill.pipeline import cluster
from maskmill.pipeline.audit import Audit
from maskmill.pipeline.engine import Engine
from maskmill.pipeline.job import Job
from maskmill.pipeline.plan import Plan
from maskmill.pipeline.records import ImageMasks, Shard, StepTimer
from maskmill.pipeline.storage import open_storage
from maskmill.pipeline.summary import read_summaries
from maskmill.pipeline.views import ResizedImage
from testing.ray_cluster import this_machine
from tests.fakes import FakeEngine, picture
from tests.runs import begin


def no_engine() -> Engine:
    raise CheckpointError("weights.pth: cut off")


def chosen(audit: Audit, shards: list[Shard]) -> list[str]:
    found: list[str] = []
    for shard in shards:
        count = 0
        for image_id in shard.image_ids or ():
            if audit.chooses(shard, image_id, count):
                found.append(image_id)
                count += 1
    return found


def test_share_of_the_images_is_chosen_by_their_ids():
    shards = [Shard(0, "/photographs", tuple(f"{number}.jpg" for number in range(10_000)))]
    images = chosen(Audit(0.01, frozenset(), no_engine), shards)
    assert 70 < len(images) < 130
    again = [Shard(number, "/other", (f"{number}.jpg",)) for number in range(10_000)]
    assert chosen(Audit(0.01, frozenset(), no_engine), again) == images, "however they are cut into shards"
    assert {*images} < {*chosen(Audit(0.02, frozenset(), no_engine), shards)}


def test_first_shards_have_an_audited_image_when_the_share_is_small():
    shards = [Shard(number, "/photographs", (f"{number}-a.jpg", f"{number}-b.jpg")) for number in range(12)]
    images = chosen(Audit(1e-9, frozenset(range(10)), no_engine), shards)
    assert images == [f"{number}-a.jpg" for number in range(10)]


@dataclass(frozen=True)
class WrongEngine(FakeEngine):
    """Loses the first mask of each image."""

    def generate(self, image: ResizedImage, timer: StepTimer) -> ImageMasks:
        masks = super().generate(image, timer)
        columns = ("area", "boxes", "predicted_iou", "stability_score", "points", "crop_boxes", "rle_counts")
        return replace(masks, **{name: getattr(masks, name)[1:] for name in columns})


@dataclass(frozen=True)
class FailingEngine(FakeEngine):
    """Cannot process an image."""

    def generate(self, image: ResizedImage, timer: StepTimer) -> ImageMasks:
        raise ValueError("out of memory")


@dataclass(frozen=True)
class DeadlyEngine(FakeEngine):
    """Ends its process."""

    def generate(self, image: ResizedImage, timer: StepTimer) -> ImageMasks:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    with this_machine(num_cpus=4):
        yield


def open_job(folder: Path, engine: Engine, audit: Audit | None, out: str = "out") -> tuple[Job, Plan]:
    (folder / "photographs").mkdir(exist_ok=True)
    for number in range(6):
        (folder / "photographs" / f"{number}.png").write_bytes(picture(number))
    job, plan = begin(folder / "photographs", folder / out, engine=lambda: engine)
    return replace(job, audit=audit), plan


def parts(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.glob("*/part-*")}


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_wrong_fast_engine_is_found_and_the_rows_do_not_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    engine, exact = WrongEngine(tmp_path), FakeEngine(tmp_path)
    run_job(*open_job(tmp_path, engine, None, "plain"))
    run_job(*open_job(tmp_path, engine, Audit(1.0, frozenset(), exact), "audited"))
    printed = capsys.readouterr()
    lines = [line for line in printed.out.splitlines() if line.startswith("audit")]
    assert lines == [
        "audit     6 images again in exact precision: 80.00 % of the masks matched at IoU 0.9, 0.00 % of the images "
        "with the same count"
    ]
    assert "maskmill: warning: the audit found less agreement" in printed.err
    assert len(parts(tmp_path / "audited")) == 6
    assert parts(tmp_path / "audited") == parts(tmp_path / "plain")
    plain, audited = (open_storage(str(tmp_path / out)) for out in ("plain", "audited"))
    assert [summary["audit"] for summary in read_summaries(plain)] == [None]
    (summary,) = read_summaries(audited)
    audit = summary["audit"]
    assert (audit["images"], audit["masks_a"], audit["masks_b"], audit["matched"]) == (6, 12, 18, 12)
    assert (audit["shares"]["matched"], audit["shares"]["same_count"]) == (0.8, 0.0)
    # A user of half precision accepts other masks.
    run_job(*open_job(tmp_path, engine, Audit(1.0, frozenset(), exact, "half"), "half"))
    printed = capsys.readouterr()
    assert "80.00 % of the masks matched" in printed.out
    assert "less agreement" not in printed.err


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_right_fast_engine_is_not_warned_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    engine = FakeEngine(tmp_path)
    run_job(*open_job(tmp_path, engine, Audit(1e-9, frozenset([1, 2]), engine)))
    printed = capsys.readouterr()
    assert "audit     2 images again in exact precision: 100.00 % of the masks matched" in printed.out
    assert "less agreement" not in printed.err


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("make", [no_engine, FailingEngine(Path("/nowhere"))])
def test_run_goes_on_when_the_audit_fails(
    tmp_path: Path, make: Callable[[], Any], caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
):
    run_job(*open_job(tmp_path, FakeEngine(tmp_path), Audit(1.0, frozenset(), make)))
    assert "images    6 (6 ok, 0 failed)" in (printed := capsys.readouterr().out)
    assert "audit     no image of this command was audited" in printed
    assert sum("the audit failed" in message for message in caplog.messages) == 6


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_image_is_not_blamed_when_its_audit_ends_the_worker(tmp_path: Path):
    job, plan = open_job(tmp_path, FakeEngine(tmp_path), Audit(1e-9, frozenset([0]), DeadlyEngine(tmp_path)))
    summary = cluster.run(job, plan, lambda _: None)
    assert summary.images == {"ok": 6, "failed": 0, "quarantined": 0}
    assert (summary.audit, summary.retries > 0) == (None, True)
