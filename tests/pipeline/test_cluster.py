"""One behaviour suite over both ways to run shards, without Ray and on it, and what only Ray has: workers that die."""

import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest
import ray

from maskmill.model.errors import CheckpointError
from maskmill.pipeline import cluster
from maskmill.pipeline.config import PRESETS, DecodingConfig, RunConfig
from maskmill.pipeline.errors import RunFailedError, RunStoppedError, StorageError
from maskmill.pipeline.job import Job
from maskmill.pipeline.ledger import Identity, open_run
from maskmill.pipeline.parts import masks_key
from maskmill.pipeline.plan import Plan
from maskmill.pipeline.progress import Progress
from maskmill.pipeline.records import ImageRecord, Shard
from maskmill.pipeline.sources import ImageFolder, open_source
from maskmill.pipeline.storage import LocalStorage, Storage, open_storage
from maskmill.pipeline.summary import is_summary, read_summaries
from maskmill.pipeline.worker import run_local
from testing.ray_cluster import this_machine
from tests.fakes import (
    DEVICE_FAULTS,
    FAIL,
    FROZEN,
    HANG,
    HANG_ONCE,
    KILL,
    KILL_ONCE,
    LOSE_DEVICE,
    LOSE_DEVICE_ALWAYS,
    SEGFAULT,
    Colour,
    FakeEngine,
    picture,
    poison_decoder,
)

Run = Callable[[Job, Plan, Callable[[Progress], None]], object]


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    """One small cluster for all tests of this file: room for two workers."""
    with this_machine(num_cpus=4):
        yield


@pytest.fixture(params=["local", pytest.param("ray", marks=pytest.mark.ray)])
def run(request: pytest.FixtureRequest) -> Run:
    if request.param == "local":
        return run_local
    request.getfixturevalue("ray_session")
    return cluster.run


@dataclass
class Photographs:
    """A folder of pictures and the outputs made from it."""

    folder: Path

    def add(self, **pictures: bytes) -> None:
        for name, data in pictures.items():
            (self.folder / "source").mkdir(exist_ok=True)
            (self.folder / "source" / f"{name}.png").write_bytes(data)

    def open(self, images_per_shard: int = 2, output: str = "out") -> tuple[Job, Plan]:
        source = open_source(str(self.folder / "source"))
        identity = Identity(source.uri, "abc", RunConfig(model="mini", preset="mini", generator=PRESETS["mini"]))
        ledger, plan = open_run(self.storage(output), identity, source, images_per_shard)
        job = Job(source, ledger, FakeEngine(self.folder), decoding=DecodingConfig(1000), **FROZEN)
        return job, plan.without(ledger.committed())

    def storage(self, output: str = "out") -> Storage:
        return open_storage(str(self.folder / output), make=True)

    def objects(self, output: str = "out") -> dict[str, bytes]:
        storage = self.storage(output)
        return {item.key: storage.read(item.key) for item in storage.list() if not is_summary(item.key)}

    def rows(self, output: str = "out") -> dict[str, dict[str, Any]]:
        """image_id -> row of the images table."""
        rows = ds.dataset(self.folder / output / "images").to_table().to_pylist()
        assert len({row["image_id"] for row in rows}) == len(rows)
        return {row["image_id"]: row for row in rows}


@pytest.fixture
def photographs(tmp_path: Path) -> Photographs:
    photographs = Photographs(tmp_path)
    photographs.add(**{f"p{seed}": picture(seed) for seed in range(7)})
    return photographs


# Both ways to run.


def test_every_image_has_a_row_and_every_mask_too(run: Run, photographs: Photographs):
    photographs.add(bad=b"no image", p9=picture(9, FAIL))
    told: list[Progress] = []
    run(*photographs.open(), told.append)
    rows = photographs.rows()
    assert Counter(row["status"] for row in rows.values()) == {"ok": 7, "failed": 2}
    assert ds.dataset(photographs.folder / "out" / "masks").count_rows() == 3 * 7
    ended = [progress for progress in told if progress.status]
    assert {progress.image_id: progress.n_masks for progress in ended} == {
        image_id: row["n_masks"] for image_id, row in rows.items()
    }
    assert len(ended) == 9


def test_only_what_is_missing_is_done_when_a_run_resumes(run: Run, photographs: Photographs):
    job, plan = photographs.open()
    run_local(job, plan, lambda _: None)
    complete = photographs.objects()
    photographs.storage().delete(masks_key("00001"))
    told: list[Progress] = []
    run(*photographs.open(), told.append)
    assert {progress.shard for progress in told} == {1}
    assert photographs.objects() == complete


def test_nothing_is_done_when_everything_is(run: Run, photographs: Photographs):
    job, plan = photographs.open()
    run_local(job, plan, lambda _: None)
    told: list[Progress] = []
    run(*photographs.open(), told.append)
    assert told == []


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_both_ways_write_the_same_bytes(photographs: Photographs):
    photographs.add(bad=b"no image", p9=picture(9, FAIL))
    run_local(*photographs.open(output="local"), lambda _: None)
    cluster.run(*photographs.open(output="ray"), lambda _: None)
    local = photographs.objects("local")
    assert len([key for key in local if key.startswith("masks/")]) == 5
    assert photographs.objects("ray") == local


# Only on Ray.


@dataclass(frozen=True)
class PatientStorage(LocalStorage):
    """Takes the part of the first shard once its worker has inferred an image of another one."""

    def create(self, key: str, data: bytes) -> bool:
        if key == masks_key("00000"):
            (self.root.parent / "first").touch(exist_ok=False)  # no copy of the shard at another worker instead
            deadline = time.monotonic() + 20
            while (self.root.parent / "generated").read_text().split().count(str(os.getpid())) < 2:
                assert time.monotonic() < deadline, "the next shard waits for this commit"
                time.sleep(0.01)
        return super().create(key, data)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_worker_infers_the_next_shard_while_the_last_one_is_committed(photographs: Photographs):
    job, plan = photographs.open(images_per_shard=1)
    ledger = replace(job.ledger, storage=PatientStorage(photographs.folder / "out"))
    engine = FakeEngine(photographs.folder, seconds=0.2)
    cluster.run(replace(job, ledger=ledger, make_engine=engine), plan, lambda _: None)
    assert {(row["status"], row["attempt"]) for row in photographs.rows().values()} == {("ok", 1)}


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_image_that_ends_its_worker_is_found_when_it_was_decoded_beside_other_shards(photographs: Photographs):
    photographs.add(p4=picture(4, SEGFAULT))
    job, plan = photographs.open(images_per_shard=1)
    engine = FakeEngine(photographs.folder, seconds=0.2)
    cluster.run(replace(job, decode=poison_decoder, make_engine=engine), plan, lambda _: None)
    rows = photographs.rows()
    assert rows.pop("p4.png")["status"] == "quarantined"
    assert {row["status"] for row in rows.values()} == {"ok"}
    assert max(row["attempt"] for row in rows.values()) <= 2, "suspected once, and then alone"


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("command", "reason"), [(KILL_ONCE, "the worker died"), (LOSE_DEVICE, "RuntimeError: CUDA error: an illegal")]
)
def test_shard_is_done_again_when_its_worker_is_lost(
    photographs: Photographs, caplog: pytest.LogCaptureFixture, command: Colour, reason: str
):
    photographs.add(p3=picture(3, command))
    told: list[Progress] = []
    cluster.run(*photographs.open(images_per_shard=7), told.append)
    rows = photographs.rows()
    assert {(row["status"], row["attempt"]) for row in rows.values()} == {("ok", 2)}
    assert sorted(progress.image_id for progress in told) == sorted(rows), "each image is told of once"
    assert f"shard 00000: attempt 1 failed: {reason}" in caplog.text
    (warning,) = (record for record in caplog.records if "attempt 1" in record.getMessage())
    assert (warning.shard, warning.attempt) == ("00000", 1)  # pyright: ignore[reportAttributeAccessIssue]
    assert warning.worker.startswith(f"{socket.gethostname()}:")  # pyright: ignore[reportAttributeAccessIssue]
    (summary,) = read_summaries(photographs.storage())
    assert summary["outcome"] == "finished"
    assert summary["images"] == {"ok": 7, "failed": 0, "quarantined": 0}
    assert (summary["masks"], summary["retries"], summary["preemptions"], summary["gpu_seconds"]) == (21, 1, 0, 0)
    assert summary["worker_seconds"] > 0
    assert summary["versions"]["ray"] == ray.__version__


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("command", "step", "reason"),
    [
        (SEGFAULT, "decode", "2 workers failed at this image: the worker died"),
        (KILL, "encode", "2 workers failed at this image: the worker died"),
        (
            LOSE_DEVICE_ALWAYS,
            "encode",
            "2 workers failed at this image: RuntimeError: CUDA error: an illegal memory access",
        ),
        (HANG, "decode", "2 workers failed at this image: no progress for 3 s"),
    ],
)
def test_image_that_ends_every_worker_is_quarantined_and_the_rest_of_its_shard_goes_on(
    photographs: Photographs, command: Colour, step: str, reason: str
):
    photographs.add(p3=picture(3, command))
    told: list[Progress] = []
    job, plan = photographs.open(images_per_shard=7)
    cluster.run(replace(job, decode=poison_decoder), plan, told.append, image_timeout=3)
    rows = photographs.rows()
    assert Counter(row["status"] for row in rows.values()) == {"ok": 6, "quarantined": 1}
    assert (rows["p3.png"]["status"], rows["p3.png"]["error_step"]) == ("quarantined", step)
    assert rows["p3.png"]["error"].startswith(reason)
    assert sorted(progress.image_id for progress in told) == sorted(rows), "each image is told of once"


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("fault", ["triton", "cudnn", "cublas"])
def test_image_that_faults_the_device_is_the_only_one_quarantined(tmp_path: Path, fault: str):
    photographs = Photographs(tmp_path)
    photographs.add(p0=picture(0, LOSE_DEVICE_ALWAYS), **{f"p{seed}": picture(seed) for seed in range(1, 6)})
    job, plan = photographs.open(images_per_shard=6)
    engine = FakeEngine(tmp_path, seconds=0.001, fault=DEVICE_FAULTS[fault])
    cluster.run(replace(job, make_engine=engine), plan, lambda _: None)
    rows = photographs.rows()
    error = rows.pop("p0.png")["error"]
    assert error == f"2 workers failed at this image: RuntimeError: {DEVICE_FAULTS[fault]}"
    assert {row["status"] for row in rows.values()} == {"ok"}
    # One worker had all images at once, two had the guilty one alone, the fourth did the others.
    assert len(set((tmp_path / "generated").read_text().split())) <= 4


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_two_images_that_end_every_worker_are_told_apart(photographs: Photographs):
    photographs.add(p1=picture(1, SEGFAULT), p5=picture(5, KILL))
    job, plan = photographs.open(images_per_shard=7)
    cluster.run(replace(job, decode=poison_decoder), plan, lambda _: None)
    assert {image_id for image_id, row in photographs.rows().items() if row["status"] != "ok"} == {"p1.png", "p5.png"}


@dataclass(frozen=True)
class DeadlySource(ImageFolder):
    """Ends the process while it is read: no image is to blame."""

    def read(self, shard: Shard, left_out: Counter[str] | None = None) -> Iterator[ImageRecord]:
        for record in super().read(shard):
            if record.image_id == "p1.png":
                os.kill(os.getpid(), signal.SIGKILL)
            yield record


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_other_shards_are_done_when_one_ends_every_worker_through_no_image(tmp_path: Path):
    photographs = Photographs(tmp_path)
    photographs.add(p0=picture(0), p1=picture(1), p2=picture(2))
    job, plan = photographs.open(images_per_shard=1)
    assert isinstance(job.source, ImageFolder)
    deadly = DeadlySource(job.source.storage, job.source.uri)
    with pytest.raises(RunFailedError, match=r"1 shards failed 3 times: shard 00001: the worker died"):
        cluster.run(replace(job, source=deadly), plan, lambda _: None)
    assert set(photographs.rows()) == {"p0.png", "p2.png"}
    # Once the cause is gone, the same command finishes the run.
    cluster.run(*photographs.open(), lambda _: None)
    assert len(photographs.rows()) == 3
    failed, finished = read_summaries(photographs.storage())
    assert failed["outcome"].startswith("1 shards failed 3 times")
    assert failed["retries"] >= 3
    assert (finished["outcome"], finished["images"]["ok"]) == ("finished", 1)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_idle_worker_does_the_shard_of_one_that_hangs(photographs: Photographs, caplog: pytest.LogCaptureFixture):
    photographs.add(p3=picture(3, HANG_ONCE))
    cluster.run(*photographs.open(), lambda _: None, image_timeout=600)
    assert {(row["status"], row["attempt"]) for row in photographs.rows().values()} == {("ok", 1)}


@dataclass(frozen=True)
class FullStorage(LocalStorage):
    """No part fits any more."""

    def create(self, key: str, data: bytes) -> bool:
        if key.startswith("masks/"):
            raise StorageError(f"{self.uri}/{key}: No space left on device")
        return super().create(key, data)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_run_ends_with_the_reason_when_nothing_can_be_committed(photographs: Photographs):
    job, plan = photographs.open(images_per_shard=1)
    full = FullStorage(photographs.folder / "out")
    with pytest.raises(StorageError, match="No space left"):
        cluster.run(replace(job, ledger=replace(job.ledger, storage=full)), plan, lambda _: None)
    cluster.run(*photographs.open(), lambda _: None)
    assert len(photographs.rows()) == 7


@dataclass(frozen=True)
class BrokenFactory:
    """An engine that cannot be made."""

    error: Exception

    def __call__(self) -> Any:
        raise self.error


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (CheckpointError("weights.pth: cut off"), CheckpointError),
        (RuntimeError("not enough memory for the model"), RunFailedError),
    ],
)
def test_run_ends_with_the_reason_when_no_engine_can_be_made(
    photographs: Photographs, error: Exception, raised: type[Exception]
):
    job, plan = photographs.open(images_per_shard=7)
    job = Job(job.source, job.ledger, BrokenFactory(error), job.decoding)
    with pytest.raises(raised, match=str(error)):
        cluster.run(job, plan, lambda _: None)
    assert job.ledger.committed() == set()


class UnpicklableError(Exception):
    """An exception that cannot travel to the driver: Ray sends its traceback instead."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


def raise_unpicklable() -> Any:
    raise UnpicklableError("the model is upside down\nand on fire")


def load_damaged() -> Any:
    raise ValueError("the model is upside down\nand on fire")


class Unloadable:
    """A factory that a worker cannot unpickle: the actor's constructor fails, and Ray sends its traceback."""

    def __call__(self) -> Any: ...

    def __reduce__(self) -> Any:
        return load_damaged, ()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("factory", "said"),
    [
        (
            raise_unpicklable,
            "tests.pipeline.test_cluster.UnpicklableError: the model is upside down and on fire",
        ),
        (Unloadable(), "ValueError: the model is upside down and on fire"),
    ],
)
def test_run_ends_with_the_exception_alone_when_ray_sends_a_traceback(
    photographs: Photographs, factory: Callable[[], Any], said: str
):
    job, plan = photographs.open(images_per_shard=7)
    with pytest.raises(RunFailedError) as caught:
        cluster.run(replace(job, make_engine=factory), plan, lambda _: None)
    assert str(caught.value) == f"the workers cannot start: {said}"


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_shards_at_work_end_and_no_others_begin_when_a_signal_asks_to_stop(photographs: Photographs, number: int):
    def stop(_: Progress) -> None:
        if not told:
            os.kill(os.getpid(), number)
        told.append(_)

    told: list[Progress] = []
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(RunStoppedError, match="run the same command again") as stopped:
        cluster.run(*photographs.open(images_per_shard=1), stop)
    assert stopped.value.signal_number == number
    assert signal.getsignal(signal.SIGINT) is before
    done = len(photographs.rows())
    assert 1 <= done < 7
    cluster.run(*photographs.open(), lambda _: None)
    assert len(photographs.rows()) == 7


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_run_stops_at_once_when_a_second_signal_comes(photographs: Photographs):
    photographs.add(**{f"p{seed}": picture(seed, HANG) for seed in range(7)})

    def stop_twice() -> None:
        while not (photographs.folder / "generated").exists():  # a shard is at work, and will not end
            time.sleep(0.05)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(2)

    stopper = threading.Thread(target=stop_twice)
    stopper.start()
    job, plan = photographs.open(images_per_shard=1)
    job = replace(job, make_engine=FakeEngine(photographs.folder, seconds=0.01))
    with pytest.raises(RunStoppedError):
        cluster.run(job, plan, lambda _: None)
    stopper.join()
    assert job.ledger.committed() == set()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_run_is_resumable_when_the_driver_raises(photographs: Photographs):
    def interrupt(_: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cluster.run(*photographs.open(images_per_shard=7), interrupt)
    cluster.run(*photographs.open(), lambda _: None)
    assert len(photographs.rows()) == 7
