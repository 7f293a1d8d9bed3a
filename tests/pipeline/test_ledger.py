"""Runs begun, resumed and refused; plans; commits."""

import json
import pickle
import threading
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.config import PRESETS, GeneratorConfig, RunConfig
from pipeline.errors import RunMismatchError, StorageError
from pipeline.ledger import RUN_KEY, Identity, Ledger, images_key, masks_key, open_run
from pipeline.plan import PLAN_KEY, Plan
from pipeline.records import Shard
from pipeline.sources import Source, open_source
from pipeline.storage import PROBE_PREFIX, LocalStorage, Storage, open_storage
from pipeline.table import encode_part, images_part
from tests.fakes import image_result

CONFIG = RunConfig(model="mini", preset="official", generator=PRESETS["official"])


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (folder / name).write_bytes(b"?")
    return folder


@pytest.fixture
def source(photographs: Path) -> Source:
    return open_source(str(photographs))


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "out"), make=True)


def identity(source: Source, config: RunConfig = CONFIG, weights: str = "abc") -> Identity:
    return Identity(source.uri, weights, config)


def part_of(shard: Shard) -> bytes:
    masks_NHW = np.ones((1, 4, 4), np.bool_)
    return encode_part(shard, [image_result(image_id, masks_NHW) for image_id in shard.image_ids or ()], "id")


def keys(storage: Storage) -> list[str]:
    return [item.key for item in storage.list()]


# Beginning and resuming.


def test_run_begins_with_its_identity_and_its_plan(storage: Storage, source: Source):
    _, plan = open_run(storage, identity(source), source, images_per_shard=2)
    assert keys(storage) == [PLAN_KEY, RUN_KEY]
    assert list(plan) == list(source.plan(2))
    fields = json.loads(storage.read(RUN_KEY))
    assert fields["source"] == source.uri
    assert fields["weights_sha256"] == "abc"
    assert fields["config"]["generator"]["pred_iou_thresh"] == 0.88


def test_plan_stands_when_the_source_has_new_images(storage: Storage, source: Source, photographs: Path):
    _, begun = open_run(storage, identity(source), source, images_per_shard=2)
    (photographs / "aa.jpg").write_bytes(b"?")
    _, resumed = open_run(storage, identity(source), source, images_per_shard=1)
    assert list(resumed) == list(begun)


def test_run_goes_on_when_it_was_stopped_before_the_plan(storage: Storage, source: Source):
    storage.create(RUN_KEY, identity(source).to_json().encode())
    storage.create(f"{PROBE_PREFIX}killed", b"first")
    _, plan = open_run(storage, identity(source), source, images_per_shard=2)
    assert len(plan) == 2


def test_run_begins_when_only_a_probe_was_left_behind(storage: Storage, source: Source):
    storage.create(f"{PROBE_PREFIX}killed", b"first")
    open_run(storage, identity(source), source, images_per_shard=2)
    assert storage.exists(RUN_KEY)


def test_point_grids_are_part_of_the_identity(storage: Storage, source: Source):
    def with_grid(coordinate: float) -> Identity:
        grid = np.array([[coordinate, 0.5]])
        generator = GeneratorConfig(points_per_side=None, point_grids=(grid,))
        return identity(source, replace(CONFIG, generator=generator))

    open_run(storage, with_grid(0.25), source, 2)
    open_run(storage, with_grid(0.25), source, 2)
    with pytest.raises(RunMismatchError, match="point_grids"):
        open_run(storage, with_grid(0.75), source, 2)


# Refusing.


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            lambda source: identity(source, replace(CONFIG, generator=GeneratorConfig(pred_iou_thresh=0.5))),
            r"config\.generator\.pred_iou_thresh is 0\.88 there and 0\.5 now",
        ),
        (lambda source: identity(source, weights="def"), 'weights_sha256 is "abc" there and "def" now'),
        (lambda source: identity(source, replace(CONFIG, precision="fast")), 'precision is "exact" there and "fast"'),
        (lambda source: replace(identity(source), source="/elsewhere"), 'source is .* and "/elsewhere" now'),
    ],
)
def test_resuming_is_refused_when_something_else_is_configured(storage: Storage, source: Source, other, message: str):
    open_run(storage, identity(source), source, 2)
    before = keys(storage)
    with pytest.raises(RunMismatchError, match=message):
        open_run(storage, other(source), source, 2)
    assert keys(storage) == before


def test_resuming_is_refused_when_the_schema_is_another(storage: Storage, source: Source):
    text = identity(source).to_json().replace('"schema_version": 1', '"schema_version": 0')
    storage.create(RUN_KEY, text.encode())
    with pytest.raises(RunMismatchError, match="schema_version is 0 there and 1 now"):
        open_run(storage, identity(source), source, 2)


@pytest.mark.parametrize("text", [b"not json", b"[1, 2]", b"\xff\xff"])
def test_damaged_run_file_is_refused_by_name(storage: Storage, source: Source, text: bytes):
    storage.create(RUN_KEY, text)
    with pytest.raises(RunMismatchError, match=RUN_KEY):
        open_run(storage, identity(source), source, 2)


def test_output_is_refused_and_left_alone_when_it_holds_other_things(storage: Storage, source: Source):
    storage.create("thesis/chapter-1.txt", b"dear to somebody")
    with pytest.raises(RunMismatchError, match="chapter-1"):
        open_run(storage, identity(source), source, 2)
    assert keys(storage) == ["thesis/chapter-1.txt"]


@pytest.mark.parametrize("output", ["", "out", "out/deeper", ".."])
def test_output_and_source_must_lie_apart(photographs: Path, source: Source, output: str):
    storage = open_storage(str(photographs / output), make=True)
    with pytest.raises(RunMismatchError, match="one inside the other"):
        open_run(storage, identity(source), source, 2)


def test_output_beside_a_source_of_the_same_beginning_is_fine(tmp_path: Path, source: Source):
    open_run(open_storage(str(tmp_path / "photographs-out"), make=True), identity(source), source, 2)


@dataclass(frozen=True)
class OverwritingStorage(LocalStorage):
    """A store that ignores "only if it is not there"."""

    def create(self, key: str, data: bytes) -> bool:
        self.put(key, data)
        return True


def test_store_is_refused_when_it_overwrites(tmp_path: Path, storage: Storage, source: Source):
    with pytest.raises(StorageError, match="create-if-absent"):
        open_run(OverwritingStorage(tmp_path / "out"), identity(source), source, 2)
    assert keys(storage) == []


# Commits.


@pytest.fixture
def run(storage: Storage, source: Source) -> tuple[Ledger, Plan]:
    return open_run(storage, identity(source), source, 2)


def test_first_commit_stands(run: tuple[Ledger, Plan], storage: Storage):
    ledger, plan = run
    assert not ledger.is_committed(plan[0])
    assert ledger.commit(plan[0], b"first")
    assert not ledger.commit(plan[0], b"second")
    assert storage.read(masks_key("00000")) == b"first"
    assert ledger.committed() == {"00000"}
    assert ledger.is_committed(plan[0])


def test_exactly_one_of_many_concurrent_commits_wins(run: tuple[Ledger, Plan], storage: Storage):
    ledger, plan = run
    barrier = threading.Barrier(8)
    won: list[bytes] = []

    def commit(number: int) -> None:
        part = bytes([number]) * 10_000
        barrier.wait()
        if ledger.commit(plan[0], part):
            won.append(part)

    threads = [threading.Thread(target=commit, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won == [storage.read(masks_key("00000"))]


def test_images_part_is_derived_from_the_masks_part(run: tuple[Ledger, Plan], storage: Storage):
    ledger, plan = run
    part = part_of(plan[0])
    ledger.commit(plan[0], part)
    ledger.publish_images("00000")
    ledger.publish_images("00000")
    assert storage.read(images_key("00000")) == images_part(part)


def test_resuming_derives_the_images_parts_that_are_missing(run: tuple[Ledger, Plan], storage: Storage, source: Source):
    ledger, plan = run
    for shard in plan:
        ledger.commit(shard, part_of(shard))
    open_run(storage, identity(source), source, 2)
    for shard in plan:
        assert storage.read(images_key(shard.name)) == images_part(storage.read(masks_key(shard.name)))


def test_ledger_travels_to_workers(run: tuple[Ledger, Plan], storage: Storage):
    ledger, plan = run
    assert pickle.loads(pickle.dumps(ledger)).commit(plan[0], b"part")
    assert storage.read(masks_key("00000")) == b"part"
