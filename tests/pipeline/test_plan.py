"""The plan of a run: what goes in comes out."""

import io
import json
import pickle
import tracemalloc
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskmill.pipeline.errors import StorageError
from maskmill.pipeline.plan import PLAN, PLAN_KEY, ROWS_PER_GROUP, SOURCE_KEY, Plan, encode_plan, read_plan
from maskmill.pipeline.records import Shard
from maskmill.pipeline.sources import PlannedSource
from maskmill.pipeline.storage import Storage, open_storage

SOURCE = PlannedSource("folder", "/p", "/p")


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "out"), make=True)


def test_plan_gives_back_the_shards_it_was_made_of(storage: Storage):
    shards = [Shard(0, "/p", ("a", "b")), Shard(1, "/p", ("c",)), Shard(2, "/p/x.tar"), Shard(3, "/p/y.tar")]
    storage.create(PLAN_KEY, encode_plan(SOURCE, shards))
    plan = read_plan(storage)
    assert list(plan) == shards
    assert len(plan) == 4
    assert plan[2] == shards[2]
    assert plan.n_images is None


@pytest.mark.parametrize("count", [3, ROWS_PER_GROUP // 2 + 3])  # the second: two row groups
def test_plan_gives_shards_forwards_and_backwards_from_any_of_them(storage: Storage, count: int):
    shards = [Shard(index, "/p", (f"{index}a", f"{index}b")) for index in range(count)]
    storage.create(PLAN_KEY, encode_plan(SOURCE, shards))
    plan = read_plan(storage)
    for index in {0, 1, count // 2, count - 2, count - 1}:
        assert list(plan.shards_from(index)) == shards[index:]
        assert list(plan.shards_from(index, -1)) == shards[index::-1]
    assert list(plan.shards_from(count)) == []
    assert list(plan.without({"00001"}).shards_from(2, -1)) == [shards[2], shards[0]]


def test_plan_counts_images_when_it_lists_them(storage: Storage):
    storage.create(PLAN_KEY, encode_plan(SOURCE, [Shard(0, "/p", ("a", "b")), Shard(1, "/p", ("c",))]))
    assert read_plan(storage).n_images == 3


def test_plan_without_some_shards_keeps_the_others_as_they_are(storage: Storage):
    shards = [Shard(index, "/p", (f"{index}a", f"{index}b")) for index in range(4)]
    storage.create(PLAN_KEY, encode_plan(SOURCE, shards))
    plan = read_plan(storage).without({"00000", "00002"})
    assert list(plan) == [shards[1], shards[3]]
    assert plan.n_images == 4
    nothing = plan.without({"00001", "00003"})
    assert (list(nothing), len(nothing), nothing.n_images) == ([], 0, 0)


def made_of(storage: Storage, shards: list[Shard]) -> Plan:
    storage.put(PLAN_KEY, encode_plan(SOURCE, shards))
    return read_plan(storage)


def test_plan_keeps_odd_names_and_the_addresses_of_images(storage: Storage):
    shards = [
        Shard(0, "/p", ("cafe\u0301", "café", "CAFÉ", " a\nb ", "caf\\xe9", "a#2")),
        Shard(1, "/list.csv", ("x", "y"), uris={"x": "s3://b/x", "y": "/y"}),
        Shard(2, "/p.parquet", ("z",), uris={"z": "/p.parquet#0"}),
    ]
    assert list(made_of(storage, shards)) == shards


def test_plan_without_images_has_no_shards(storage: Storage):
    plan = made_of(storage, [])
    assert (list(plan), len(plan), plan.n_images) == ([], 0, 0)


def test_shards_lie_in_one_row_group_each_when_there_are_many(storage: Storage):
    shards = [Shard(index, "/p", tuple(f"{index}/{n}" for n in range(1000))) for index in range(150)]
    shards[70:70] = [Shard(0, "/p", tuple(f"large/{n}" for n in range(2 * ROWS_PER_GROUP)))]
    shards = [Shard(index, shard.uri, shard.image_ids) for index, shard in enumerate(shards)]
    plan = made_of(storage, shards)
    assert list(plan) == shards
    assert (len(plan), plan.n_images) == (151, 150_000 + 2 * ROWS_PER_GROUP)
    file = pq.ParquetFile(io.BytesIO(storage.read(PLAN_KEY)))
    groups = [
        file.read_row_group(group, ["shard"])["shard"].unique().to_pylist() for group in range(file.num_row_groups)
    ]
    assert len(groups) > 2
    assert [index for group in groups for index in group] == list(range(151))
    left = plan.without({shard.name for shard in shards[3:]}).without({"00001"})
    assert list(left) == [shards[0], shards[2]]
    assert (len(left), left.n_images, left[1]) == (2, 2000, shards[2])


def test_images_can_be_counted_when_the_shards_that_do_not_list_them_are_done(storage: Storage):
    plan = made_of(storage, [Shard(0, "/a", ("a", "b")), Shard(1, "/b.tar")])
    assert plan.n_images is None
    assert plan.without({"00001"}).n_images == 2


def test_memory_does_not_grow_with_the_number_of_images(storage: Storage):
    """Python's memory, which is what grows: 100 bytes for each image id, ten times what a plan has for it."""

    def peak(n_shards: int) -> int:
        tracemalloc.start()
        try:
            shards = (Shard(i, "/p", tuple(f"{i:06d}/{n:03d}.jpg" for n in range(100))) for i in range(n_shards))
            storage.put(PLAN_KEY, encode_plan(SOURCE, shards))
            assert sum(len(shard.image_ids or ()) for shard in read_plan(storage)) == n_shards * 100
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(4000) < 1.2 * peak(1400)


def test_damaged_plan_is_named(storage: Storage):
    storage.create(PLAN_KEY, b"PAR1 not really")
    with pytest.raises(StorageError, match=PLAN_KEY):
        read_plan(storage)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_plan_with_a_flipped_bit_is_named(storage: Storage, part: float):
    data = bytearray(encode_plan(SOURCE, [Shard(index, "/p", (f"{index}a", f"{index}b")) for index in range(500)]))
    data[int(len(data) * part)] ^= 16
    storage.put(PLAN_KEY, bytes(data))
    with pytest.raises(StorageError, match=f"{PLAN_KEY}: damaged"):
        list(read_plan(storage))


@pytest.mark.parametrize(
    "rows",
    [
        [(1, "/p", "a", None)],
        [(0, "/p", "a", None), (2, "/p", "b", None)],
        [(0, "/p", "a", None), (1, "/p", "b", None), (0, "/p", "c", None)],
        [(0, "/p", "a", None), (0, "/p", None, None)],
    ],
)
def test_rows_that_are_no_plan_are_refused(storage: Storage, rows: list[tuple[int, str, str | None, str | None]]):
    put_rows(storage, rows, json.dumps(asdict(SOURCE)))
    with pytest.raises(StorageError, match="damaged"):
        read_plan(storage)


@pytest.mark.parametrize(
    "source",
    ["", "[]", '{"kind": "folder"}', '{"kind": "zips", "uri": "/p", "root": "/p"}', json.dumps(asdict(SOURCE))],
)
def test_plan_is_refused_when_it_does_not_say_how_its_source_is_read(storage: Storage, source: str):
    put_rows(storage, [(0, "/p", "a", None)], source)
    if source == json.dumps(asdict(SOURCE)):
        assert read_plan(storage).source == SOURCE
        return
    with pytest.raises(StorageError, match=f"{PLAN_KEY}: damaged"):
        read_plan(storage)


def put_rows(storage: Storage, rows: list[tuple[int, str, str | None, str | None]], source: str) -> None:
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, PLAN) as writer:
        writer.write_table(pa.Table.from_pylist([dict(zip(PLAN.names, row, strict=True)) for row in rows], schema=PLAN))
        writer.add_key_value_metadata({SOURCE_KEY: source})
    storage.put(PLAN_KEY, sink.getvalue())


def test_shards_of_a_plan_can_be_sent_to_workers(storage: Storage):
    (shard,) = made_of(storage, [Shard(0, "/list.csv", ("x",), uris={"x": "/x"})])
    assert pickle.loads(pickle.dumps(shard)) == shard
