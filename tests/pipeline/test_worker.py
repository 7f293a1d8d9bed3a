"""One shard to one part: rows, failures, progress, and threads that change nothing."""

import hashlib
import io
import pickle
import re
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray

from maskmill.model.checkpoint import file_sha256, save_checkpoint
from maskmill.model.errors import CheckpointError
from maskmill.model.families import VARIANTS
from maskmill.model.network import Network
from maskmill.pipeline.config import PRESETS, DecodingConfig, RunConfig
from maskmill.pipeline.engine import GeneratorFactory
from maskmill.pipeline.errors import StorageError
from maskmill.pipeline.generator import MaskGenerator
from maskmill.pipeline.images import decode_image
from maskmill.pipeline.job import Job
from maskmill.pipeline.ledger import Ledger
from maskmill.pipeline.parts import images_key, masks_key
from maskmill.pipeline.progress import Attempt, Overtaken, Progress
from maskmill.pipeline.records import DecodedImage, Failure, ImageMasks, ImageRecord, Shard, StepTimer
from maskmill.pipeline.sources import PlannedSource
from maskmill.pipeline.storage import LocalStorage, open_storage
from maskmill.pipeline.table import encode_part, images_part, read_footer
from maskmill.pipeline.views import ResizedImage
from maskmill.pipeline.worker import AHEAD, DeviceLock, EngineFailedError, process_shard
from tests.fakes import DEVICE_FAULTS, DEVICE_LOST, FAIL, FROZEN, KILL, LOSE_DEVICE, FakeEngine, picture


@dataclass(frozen=True)
class FakeSource:
    """Images from memory; counts how many were asked for, and can be slow."""

    images: dict[str, bytes | Failure]
    seconds: float = 0.0
    read_ids: list[str] = field(default_factory=list)
    uri: str = "/photographs"

    @property
    def planned(self) -> PlannedSource:
        return PlannedSource("folder", self.uri, self.uri)

    def plan(self, images_per_shard: int) -> Iterator[Shard]:
        yield Shard(0, self.uri, tuple(self.images))

    def read(self, shard: Shard, left_out: Counter[str] | None = None) -> Iterator[ImageRecord]:
        for image_id, data in self.images.items():
            time.sleep(self.seconds)
            self.read_ids.append(image_id)
            yield ImageRecord(image_id, f"{self.uri}/{image_id}", data)


SHARD = Shard(0, "/photographs")


@pytest.fixture
def job(tmp_path: Path) -> Job:
    ledger = Ledger(open_storage(str(tmp_path / "out"), make=True), "id")
    return Job(FakeSource({}), ledger, FakeEngine(tmp_path), decoding=DecodingConfig(1000), **FROZEN)


def with_images(job: Job, images: dict[str, bytes | Failure]) -> Job:
    return replace(job, source=FakeSource(images))


def process(job: Job, **arguments: Any) -> list[Progress | Overtaken]:
    return list(process_shard(job, job.make_engine(), SHARD, **arguments))


def of_images(records: Iterable[Progress | Overtaken]) -> list[Progress]:
    return [record for record in records if isinstance(record, Progress)]


def image_rows(job: Job) -> dict[str, dict[str, Any]]:
    rows = read_footer(io.BytesIO(part(job))).images.to_pylist()
    return {row["image_id"]: row for row in rows}


def part(job: Job) -> bytes:
    return job.ledger.storage.read(masks_key("00000"))


def test_part_has_the_masks_of_every_image(job: Job):
    images = {f"{seed}.png": picture(seed) for seed in range(10)}
    job = with_images(job, {**images})
    process(job)
    rows = image_rows(job)
    assert {image_id: row["n_masks"] for image_id, row in rows.items()} == dict.fromkeys(images, 3)
    assert rows["4.png"]["sha256"] == hashlib.sha256(images["4.png"]).hexdigest()
    assert rows["4.png"]["source_uri"] == "/photographs/4.png"
    assert pq.read_table(io.BytesIO(part(job))).num_rows == 30


def test_progress_tells_of_each_image_when_it_begins_and_when_it_ends(job: Job):
    job = with_images(job, {"b": picture(1), "a": b"no image"})
    assert process(job) == [
        Progress(0, "b", "decode"),
        Progress(0, "b", "encode"),
        Progress(0, "b", "rle", "ok", 3, 0.0),
        Progress(0, "a", "decode"),
        Progress(0, "a", "encode"),
        Progress(0, "a", "decode", "failed", 0, 0.0),
    ]


@pytest.mark.parametrize("attempt", [Attempt(), Attempt(number=2)])
def test_part_counts_what_the_source_left_out(job: Job, attempt: Attempt):
    class Selective(FakeSource):
        def read(self, shard: Shard, left_out: Counter[str] | None = None) -> Iterator[ImageRecord]:
            assert left_out is not None
            for record in super().read(shard):
                left_out["hidden"] += 2
                yield record

    job = replace(job, source=Selective({"a": picture(1), "b": b"no image"}))
    process(job, attempt=attempt)
    assert read_footer(io.BytesIO(part(job))).left_out == {"hidden": 4}


def test_failures_become_rows_and_the_others_go_on(job: Job):
    images = {
        "fetch": Failure("fetch", "gone"),
        "decode": b"no image",
        "large": picture(3),
        "generate": picture(1, FAIL),
        "good": picture(2),
    }
    job = replace(with_images(job, images), decoding=DecodingConfig(11 * 11))
    process(job)
    rows = image_rows(job)
    assert {image_id: (row["status"], row["error_step"]) for image_id, row in rows.items()} == {
        "fetch": ("failed", "fetch"),
        "decode": ("failed", "decode"),
        "large": ("failed", "decode"),
        "generate": ("failed", "filter"),
        "good": ("ok", None),
    }
    assert rows["fetch"]["error"] == "gone"
    assert rows["fetch"]["sha256"] is None
    assert rows["decode"]["sha256"] == hashlib.sha256(b"no image").hexdigest()
    assert rows["generate"]["error"] == "ValueError: no masks for tensor at 0x..."
    assert rows["good"]["n_masks"] == 3


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("out of memory"),
        torch.cuda.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_running_out_of_memory_ends_that_image_only_when_the_device_answers(job: Job, error: Exception):
    class Exhausted(FakeEngine):
        def generate(self, image: ResizedImage, timer: StepTimer) -> ImageMasks:
            raise error

    job = with_images(job, {"a": picture(1)})
    list(process_shard(job, Exhausted(Path()), SHARD))
    row = image_rows(job)["a"]
    assert row["error"] == f"{type(error).__name__}: {error}"
    assert row["error_step"] == "encode"


@pytest.mark.parametrize("fault", DEVICE_FAULTS.values(), ids=list(DEVICE_FAULTS))
def test_lost_device_fails_the_shard_and_no_image(job: Job, tmp_path: Path, fault: str):
    job = with_images(job, {"a": picture(1, LOSE_DEVICE), "b": picture(2)})
    with pytest.raises(RuntimeError, match=re.escape(fault)):
        list(process_shard(job, FakeEngine(tmp_path, fault=fault), SHARD))
    assert not job.ledger.is_committed(SHARD)


def test_next_shard_of_a_lost_device_is_refused_and_not_blamed(job: Job, tmp_path: Path):
    engine, lock = FakeEngine(tmp_path), DeviceLock()
    with pytest.raises(RuntimeError, match=re.escape(DEVICE_LOST)):
        list(process_shard(with_images(job, {"a": picture(1, LOSE_DEVICE)}), engine, SHARD, device_lock=lock))
    following = with_images(job, {"b": picture(2)})
    with pytest.raises(EngineFailedError):
        list(process_shard(following, engine, SHARD, device_lock=lock))
    assert not job.ledger.is_committed(SHARD)


@dataclass(frozen=True, kw_only=True)
class Unprepared(FakeEngine):
    """Fails to prepare any image."""

    error: Exception
    answers: bool = True

    def device_answers(self) -> bool:
        return self.answers

    def prepare(self, pixels_HW3: NDArray[np.uint8]) -> ResizedImage:
        raise self.error


@pytest.mark.parametrize("attempt", [Attempt(1), Attempt(2)])
def test_image_that_cannot_be_prepared_becomes_a_row(job: Job, attempt: Attempt):
    job = with_images(job, {"a": picture(1), "b": b"no image"})
    list(process_shard(job, Unprepared(Path(), error=MemoryError("out of memory")), SHARD, attempt))
    row = image_rows(job)["a"]
    assert (row["status"], row["error_step"], row["error"]) == ("failed", "decode", "MemoryError: out of memory")
    assert row["sha256"] == hashlib.sha256(picture(1)).hexdigest()
    assert row["encode_ms"] is None


@pytest.mark.parametrize("attempt", [Attempt(1), Attempt(2)])
def test_device_lost_while_images_are_prepared_fails_the_shard_and_no_image(job: Job, attempt: Attempt):
    job = with_images(job, {"a": picture(1)})
    engine = Unprepared(Path(), error=RuntimeError(DEVICE_LOST), answers=False)
    with pytest.raises(RuntimeError, match=DEVICE_LOST):
        list(process_shard(job, engine, SHARD, attempt))
    assert not job.ledger.is_committed(SHARD)


def test_part_is_the_same_bytes_whatever_the_threads_do(job: Job, tmp_path: Path):
    images: dict[str, bytes | Failure] = {f"{seed}.png": picture(seed) for seed in range(12)}
    process(with_images(job, images))
    again = replace(job, ledger=Ledger(open_storage(str(tmp_path / "again"), make=True), "id"))
    process(replace(again, source=FakeSource(images, seconds=0.005)))
    assert part(again) == part(job)


def test_images_are_read_ahead_but_not_without_bound(job: Job):
    job = with_images(job, {f"{seed}.png": picture(seed) for seed in range(12)})
    progress = process_shard(job, job.make_engine(), SHARD, ahead=3)
    next(progress)
    assert isinstance(job.source, FakeSource)
    deadline = time.monotonic() + 60
    while len(job.source.read_ids) < 3 + 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(job.source.read_ids) == 3 + 1
    list(progress)


def test_next_shard_is_read_and_the_last_one_committed_while_a_shard_has_its_turn(job: Job):
    """The engine and the store wait for each other's next shard: one after the other they would wait for ever."""
    next_is_prepared, next_is_inferred, committed = threading.Event(), threading.Event(), threading.Event()

    @dataclass(frozen=True)
    class Waiting(FakeEngine):
        def prepare(self, pixels_HW3: NDArray[np.uint8]) -> ResizedImage:
            if tuple(pixels_HW3[0, 0]) == mark:
                next_is_prepared.set()
            return super().prepare(pixels_HW3)

        def generate(self, image: ResizedImage, timer: StepTimer) -> ImageMasks:
            if turn_of.pop() == 0:
                assert next_is_prepared.wait(60), "nothing of the next shard is prepared while this one has its turn"
            else:
                next_is_inferred.set()
                assert committed.wait(60)
            return super().generate(image, timer)

    @dataclass(frozen=True)
    class WaitingStorage(LocalStorage):
        def create(self, key: str, data: bytes) -> bool:
            if key == masks_key("00000"):
                assert next_is_inferred.wait(60), "the next shard waits for this commit"
                committed.set()
            return super().create(key, data)

    turn_of = [1, 0]  # the shards in reverse
    mark = (0, 0, 1)
    images = {"first": picture(1), "next": picture(2, mark)}
    ledger = Ledger(WaitingStorage(Path(job.ledger.storage.uri)), "id")
    jobs = [replace(with_images(job, {name: data}), ledger=ledger) for name, data in images.items()]
    engine, lock = Waiting(Path()), DeviceLock()
    first, second = (
        process_shard(job, engine, Shard(index, "/photographs"), device_lock=lock) for index, job in enumerate(jobs)
    )
    next(first)  # it has its turn
    with ThreadPoolExecutor(2) as threads:
        for told in [threads.submit(of_images, first), threads.submit(of_images, second)]:
            assert told.result()[-1].status == "ok"
    assert all(ledger.is_committed(Shard(index, "/photographs")) for index in range(2))


def test_engine_gets_as_many_images_at_once_as_it_takes(job: Job):
    """They wait for each other: one by one they would fail."""
    meeting = threading.Barrier(2)

    class Meeting(FakeEngine):
        def generate(self, image: ResizedImage, timer: StepTimer) -> ImageMasks:
            meeting.wait(60)
            return super().generate(image, timer)

    names = [f"{seed}.png" for seed in range(6)]
    job = with_images(job, {name: picture(seed) for seed, name in enumerate(names)})
    told = of_images(process_shard(job, Meeting(Path(), at_once=2), SHARD))
    assert [(progress.image_id, progress.status) for progress in told if progress.status] == [
        (name, "ok") for name in names
    ]
    one_by_one = replace(job, ledger=Ledger(open_storage(f"{job.ledger.storage.uri}-2", make=True), "id"))
    process(one_by_one)
    assert part(job) == part(one_by_one)


def test_after_a_loss_the_engine_gets_one_image_at_a_time(job: Job):
    at_work = threading.Semaphore(1)

    class Alone(FakeEngine):
        def generate(self, image: ResizedImage, timer: StepTimer) -> ImageMasks:
            assert at_work.acquire(blocking=False)
            time.sleep(0.01)
            masks = super().generate(image, timer)
            at_work.release()
            return masks

    job = with_images(job, {f"{seed}.png": picture(seed) for seed in range(4)})
    told = of_images(process_shard(job, Alone(Path(), at_once=2), SHARD, Attempt(2)))
    assert [progress.status for progress in told if progress.status] == ["ok"] * 4


def test_no_thread_is_left_behind_when_a_shard_is_abandoned(job: Job):
    before = threading.active_count()
    progress = process_shard(
        with_images(job, {f"{seed}.png": picture(seed) for seed in range(20)}), job.make_engine(), SHARD
    )
    next(progress)
    assert isinstance(progress, Iterator)
    progress.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert threading.active_count() == before
    assert not job.ledger.is_committed(SHARD)


def test_commit_of_somebody_else_stands(job: Job):
    job = with_images(job, {"a": picture(1)})
    progress = process_shard(job, job.make_engine(), SHARD)
    next(progress)
    theirs = encode_part(SHARD, [], "id")
    job.ledger.commit(SHARD, theirs)
    assert list(progress)[-1] == Overtaken(0)
    assert part(job) == theirs


def test_nothing_is_read_when_the_shard_is_done(job: Job):
    job = with_images(job, {"a": picture(1)})
    theirs = encode_part(SHARD, [], "id")
    job.ledger.commit(SHARD, theirs)
    assert process(job) == [Overtaken(0)]
    assert isinstance(job.source, FakeSource)
    assert job.source.read_ids == []
    assert job.ledger.storage.read(images_key("00000")) == images_part(theirs), "its worker may have died before this"


def test_steps_are_timed(job: Job):
    process(replace(with_images(job, {"a": picture(1)}), clock=time.perf_counter))
    row = image_rows(job)["a"]
    assert min(row["fetch_ms"], row["decode_ms"], row["filter_ms"]) > 0
    assert row["prompt_ms"] is None


def test_attempt_is_written_into_the_rows(job: Job):
    job = with_images(job, {"a": picture(1)})
    process(job, attempt=Attempt(2))
    assert image_rows(job)["a"]["attempt"] == 2


def test_isolated_attempt_has_one_image_at_work_and_tells_before_each_step(job: Job):
    decoded: list[bytes] = []

    def decode(data: bytes, decoding: DecodingConfig) -> DecodedImage:
        decoded.append(data)
        return decode_image(data, decoding)

    images: dict[str, bytes | Failure] = {f"{seed}.png": picture(seed) for seed in range(3 * AHEAD)}
    job = replace(with_images(job, images), decode=decode)
    assert isinstance(job.source, FakeSource)
    progress = process_shard(job, job.make_engine(), SHARD, Attempt(2))
    assert next(progress) == Progress(0, "0.png", "decode")
    assert (job.source.read_ids, decoded) == (["0.png"], [])
    assert next(progress) == Progress(0, "0.png", "encode")
    assert (job.source.read_ids, decoded) == (["0.png"], [images["0.png"]])
    list(progress)
    assert len(image_rows(job)) == len(images)


def test_quarantined_image_becomes_a_row_and_is_not_touched(job: Job):
    images = {"a": picture(1), "poison": picture(2, KILL), "z": picture(3)}
    job = with_images(job, {**images})
    failure = Failure("encode", "2 workers failed at this image: the worker died")
    progress = process(job, attempt=Attempt(4, {"poison": failure}))
    assert Progress(0, "poison", "encode", "quarantined", 0, 0.0) in progress
    row = image_rows(job)["poison"]
    assert (row["status"], row["error_step"], row["error"]) == ("quarantined", failure.step, failure.reason)
    assert row["sha256"] == hashlib.sha256(images["poison"]).hexdigest()
    assert [row["status"] for row in image_rows(job).values()] == ["ok", "quarantined", "ok"]


def test_images_to_skip_are_left_out(job: Job):
    job = with_images(job, {"a": picture(1), "b": picture(2)})
    list(process_shard(job, job.make_engine(), replace(SHARD, skip=frozenset({"a"}))))
    assert list(image_rows(job)) == ["b"]


@pytest.mark.parametrize("attempt", [Attempt(1), Attempt(2)])
def test_store_that_fails_ends_the_shard_and_no_image(job: Job, attempt: Attempt):
    @dataclass(frozen=True)
    class Unreachable(FakeSource):
        def read(self, shard: Shard, left_out: Counter[str] | None = None) -> Iterator[ImageRecord]:
            yield from super().read(shard)
            raise StorageError("s3://images: timed out")

    job = replace(job, source=Unreachable({"a": picture(1)}))
    lock = DeviceLock()
    with pytest.raises(StorageError, match="timed out"):
        process(job, attempt=attempt, device_lock=lock)
    assert not job.ledger.is_committed(SHARD)
    process(with_images(job, {"a": picture(1)}), device_lock=lock)  # the device is intact
    assert job.ledger.is_committed(SHARD)


def test_factory_loads_the_weights_the_run_began_with(tmp_path: Path):
    weights = tmp_path / "mini.safetensors"
    save_checkpoint(Network(VARIANTS["mini"]), weights)
    config = RunConfig(model="mini", preset="mini", generator=PRESETS["mini"])
    factory = GeneratorFactory(config, weights, file_sha256(weights), "cpu")
    assert isinstance(pickle.loads(pickle.dumps(factory))(), MaskGenerator)
    with pytest.raises(CheckpointError, match="the run began with"):
        replace(factory, weights_sha256="0" * 64)()
