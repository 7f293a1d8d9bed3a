"""Names of parts."""

from __future__ import annotations

from pathlib import Path

import pytest

from maskmill.pipeline.parts import images_key, list_parts, masks_key, part_at, part_name, parts_of, retry_of, shard_of
from maskmill.pipeline.storage import open_storage


@pytest.mark.parametrize("shard_index", [0, 7, 12345, 123456])
@pytest.mark.parametrize("retry", [0, 1, 12])
def test_name_says_which_shard_and_which_retry(shard_index: int, retry: int):
    part = part_name(shard_index, retry)
    assert (shard_of(part), retry_of(part)) == (part_name(shard_index), retry)
    assert part_at(masks_key(part)) == part_at(images_key(part)) == part


@pytest.mark.parametrize(
    "key",
    [
        "masks/part-0.parquet",
        "masks/part-00000.parquet.bak",
        "masks/part-00000-retry-0.parquet",
        "masks/part-00000-retry-01.parquet",
        "masks/x/part-00000.parquet",
        "other/part-00000.parquet",
        "_plan.parquet",
    ],
)
def test_other_objects_are_not_parts(key: str):
    assert part_at(key) is None


def test_parts_of_a_shard_come_in_the_order_of_its_retries(tmp_path: Path):
    storage = open_storage(str(tmp_path), make=True)
    for retry in range(11):
        storage.create(masks_key(part_name(3, retry)), b"")
    storage.create(masks_key(part_name(4)), b"")
    storage.create("masks/part-3.parquet", b"")
    assert parts_of(storage, "00003") == [part_name(3, retry) for retry in range(11)]
    assert sorted(list_parts(storage, "masks")) == sorted([part_name(4), *parts_of(storage, "00003")])
    assert list_parts(storage, "images") == []
