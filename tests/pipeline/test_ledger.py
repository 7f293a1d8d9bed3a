"""Runs begun, resumed and refused; plans; commits."""

import json
import pickle
import threading
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from maskmill.pipeline.config import PRESETS, GeneratorConfig, RunConfig
from maskmill.pipeline.errors import RunMismatchError, SourceError, StorageError
from maskmill.pipeline.finished import Totals, open_finished_run
from maskmill.pipeline.ledger import RUN_KEY, Identity, Ledger, open_run, reopen_run
from maskmill.pipeline.parts import images_key, masks_key
from maskmill.pipeline.plan import PLAN_KEY, Plan, encode_plan
from maskmill.pipeline.records import Failure, Shard
from maskmill.pipeline.sources import Source, open_source
from maskmill.pipeline.storage import PROBE_PREFIX, LocalStorage, Storage, open_storage
from maskmill.pipeline.table import SCHEMA_VERSION, encode_part, images_part, read_parquet
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


def test_identity_has_only_changed_settings_of_those_that_were_added_later(source: Source):
    plain, changed = identity(source), replace(CONFIG.generator, use_m2m=True, mask_threshold=0.5)
    assert "m2m" not in plain.to_json()
    other = identity(source, replace(CONFIG, generator=changed))
    assert Identity.from_json(plain.to_json()) == plain
    assert Identity.from_json(other.to_json()) == other


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


def test_nothing_is_written_when_the_source_has_nothing_to_plan(storage: Storage, source: Source, photographs: Path):
    for path in photographs.iterdir():
        path.unlink()
    with pytest.raises(SourceError, match="no images in it"):
        open_run(storage, identity(source), source, images_per_shard=2)
    assert keys(storage) == []


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
    text = identity(source).to_json().replace(f'"schema_version": {SCHEMA_VERSION}', '"schema_version": 0')
    storage.create(RUN_KEY, text.encode())
    with pytest.raises(RunMismatchError, match="schema version 0; this one has"):
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


# Retries.


def failing_part(shard: Shard, *failed: str) -> bytes:
    """A part whose images have one mask each, but for those that failed."""
    results = [image_result(image_id, np.ones((1, 4, 4), np.bool_)) for image_id in shard.image_ids or ()]
    failure = Failure("decode", "damaged image")
    return encode_part(
        shard,
        [
            replace(result, outcome=failure, status="failed") if result.image_id in failed else result
            for result in results
        ],
        "id",
    )


def retries(ledger: Ledger) -> list[Shard]:
    return open_finished_run(ledger.storage).retries()


def image_rows(storage: Storage) -> list[tuple[str, str, str]]:
    """Every row of the images table: image_id, status, shard."""
    tables = [read_parquet(storage.read(item.key)) for item in storage.list("images/")]
    return sorted((row["image_id"], row["status"], row["shard"]) for table in tables for row in table.to_pylist())


@pytest.fixture
def failed_run(run: tuple[Ledger, Plan]) -> tuple[Ledger, Plan]:
    """a.jpg is ok, b.jpg and c.jpg have failed."""
    ledger, plan = run
    for shard in plan:
        ledger.commit(shard, failing_part(shard, "b.jpg", "c.jpg"))
        ledger.publish_images(shard.name)
    return run


def test_retries_hold_just_the_images_that_failed(failed_run: tuple[Ledger, Plan]):
    assert [(shard.name, shard.image_ids) for shard in retries(failed_run[0])] == [
        ("00000-retry-1", ("b.jpg",)),
        ("00001-retry-1", ("c.jpg",)),
    ]


def test_images_table_has_the_rows_of_the_retry_instead_when_one_is_committed(
    failed_run: tuple[Ledger, Plan], storage: Storage
):
    ledger, _ = failed_run
    masks_before = storage.read(masks_key("00000"))
    first, second = retries(ledger)
    for shard in (first, second):
        ledger.commit(shard, failing_part(shard, "c.jpg"))
        ledger.publish_images(shard.name)
    assert image_rows(storage) == [
        ("a.jpg", "ok", "00000"),
        ("b.jpg", "ok", "00000-retry-1"),
        ("c.jpg", "failed", "00001-retry-1"),
    ]
    assert storage.read(masks_key("00000")) == masks_before
    assert ledger.committed() == {"00000", "00001"}
    (again,) = retries(ledger)
    assert (again.name, again.image_ids) == ("00001-retry-2", ("c.jpg",))
    ledger.commit(again, failing_part(again))
    ledger.publish_images(again.name)
    assert image_rows(storage)[2] == ("c.jpg", "ok", "00001-retry-2")
    assert retries(ledger) == []
    assert open_finished_run(storage).totals() == Totals(images=3, failed=0, masks=3, left_out={})


def test_retry_of_a_tar_leaves_out_only_what_is_done(storage: Storage, source: Source):
    ledger, _ = storage_with_plan(storage, source, [Shard(0, "/p/x.tar")])
    listed = Shard(0, "/p/x.tar", ("x.tar/a.jpg", "x.tar/b.jpg", "x.tar"))
    ledger.commit(listed, failing_part(listed, "x.tar/b.jpg", "x.tar"))
    ledger.publish_images("00000")
    skip, again = frozenset({"x.tar/a.jpg"}), frozenset({"x.tar/b.jpg", "x.tar"})
    shard = Shard(0, "/p/x.tar", None, retry=1, skip=skip, again=again)
    assert retries(ledger) == [shard]


def storage_with_plan(storage: Storage, source: Source, shards: list[Shard]) -> tuple[Ledger, Plan]:
    storage.create(PLAN_KEY, encode_plan(source.planned, shards))
    storage.create(RUN_KEY, identity(source).to_json().encode())
    return open_run(storage, identity(source), source, 2)


def test_superseded_rows_go_when_a_driver_died_after_the_commit_of_a_retry(
    failed_run: tuple[Ledger, Plan], storage: Storage
):
    ledger, _ = failed_run
    retry = retries(ledger)[0]
    ledger.commit(retry, failing_part(retry))
    reopened, ledger = reopen_run(storage)
    assert reopened.sha256 == ledger.identity
    assert [row for row in image_rows(storage) if row[0] == "b.jpg"] == [("b.jpg", "ok", "00000-retry-1")]


@dataclass(frozen=True)
class RetriedMeanwhile(LocalStorage):
    """Another driver commits and publishes a retry just when this one writes an images part."""

    part: bytes = b""

    def put(self, key: str, data: bytes) -> None:
        there = LocalStorage(self.root)
        if there.create(masks_key("00000-retry-1"), self.part):
            Ledger(there, "id").publish_images("00000-retry-1")
        super().put(key, data)


def test_no_image_stays_doubled_when_a_late_driver_publishes_what_was_retried(
    failed_run: tuple[Ledger, Plan], tmp_path: Path, storage: Storage
):
    late = RetriedMeanwhile(tmp_path / "out", failing_part(retries(failed_run[0])[0]))
    Ledger(late, "id").publish_images("00000")
    assert [row for row in image_rows(storage) if row[0] == "b.jpg"] == [("b.jpg", "ok", "00000-retry-1")]


def test_run_that_another_version_began_cannot_be_reopened(storage: Storage, source: Source):
    text = identity(source).to_json().replace(f'"schema_version": {SCHEMA_VERSION}', '"schema_version": 0')
    storage.create(RUN_KEY, text.encode())
    with pytest.raises(RunMismatchError, match=r"schema version 0; this one has"):
        reopen_run(storage)


def test_ledger_travels_to_workers(run: tuple[Ledger, Plan], storage: Storage):
    ledger, plan = run
    assert pickle.loads(pickle.dumps(ledger)).commit(plan[0], b"part")
    assert storage.read(masks_key("00000")) == b"part"
