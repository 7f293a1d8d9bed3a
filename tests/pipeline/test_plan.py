"""The plan of a run: what goes in comes out."""

from pathlib import Path

import pytest

from pipeline.errors import StorageError
from pipeline.plan import PLAN_KEY, encode_plan, read_plan
from pipeline.records import Shard
from pipeline.storage import Storage, open_storage


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "out"), make=True)


def test_plan_gives_back_the_shards_it_was_made_of(storage: Storage):
    shards = [Shard(0, "/p", ("a", "b")), Shard(1, "/p", ("c",)), Shard(2, "/p/x.tar"), Shard(3, "/p/y.tar")]
    storage.create(PLAN_KEY, encode_plan(shards))
    plan = read_plan(storage)
    assert list(plan) == shards
    assert len(plan) == 4
    assert plan[2] == shards[2]
    assert plan.n_images is None


def test_plan_counts_images_when_it_lists_them(storage: Storage):
    storage.create(PLAN_KEY, encode_plan([Shard(0, "/p", ("a", "b")), Shard(1, "/p", ("c",))]))
    assert read_plan(storage).n_images == 3


def test_plan_without_some_shards_keeps_the_others_as_they_are(storage: Storage):
    shards = [Shard(index, "/p", (f"{index}a", f"{index}b")) for index in range(4)]
    storage.create(PLAN_KEY, encode_plan(shards))
    plan = read_plan(storage).without({"00000", "00002"})
    assert list(plan) == [shards[1], shards[3]]
    assert plan.n_images == 4
    nothing = plan.without({"00001", "00003"})
    assert (list(nothing), len(nothing), nothing.n_images) == ([], 0, 0)


def test_damaged_plan_is_named(storage: Storage):
    storage.create(PLAN_KEY, b"PAR1 not really")
    with pytest.raises(StorageError, match=PLAN_KEY):
        read_plan(storage)
