"""The names of parts: the objects that hold the results of a shard and of its retries.

The part of shard 7 is named `00007`, the part of its first retry `00007-retry-1`. Both tables use these names:
`masks/part-00007.parquet` and `images/part-00007.parquet`.
"""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from maskmill.pipeline.storage import Storage

_KEY = re.compile(r"(?:masks|images)/part-(\d{5,}(?:-retry-[1-9]\d*)?)\.parquet")


def part_name(shard_index: int, retry: int = 0) -> str:
    """The name of the part of a shard (`retry` 0) or of one of its retries. The first is also the shard's name."""
    return f"{shard_index:05d}-retry-{retry}" if retry else f"{shard_index:05d}"


def shard_of(part: str) -> str:
    """The name of the shard that a part belongs to."""
    return part.partition("-")[0]


def retry_of(part: str) -> int:
    """The number of the retry that made a part; 0 for the shard as planned."""
    return int(part.rpartition("-")[2]) if "-" in part else 0


def masks_key(part: str) -> str:
    """The key of the masks of a part."""
    return f"masks/part-{part}.parquet"


def images_key(part: str) -> str:
    """The key of the images of a part."""
    return f"images/part-{part}.parquet"


def part_at(key: str) -> str | None:
    """The name of the part at a key of either table; None for any other object."""
    match = _KEY.fullmatch(key)
    return match and match[1]


def list_parts(storage: Storage, table: str) -> list[str]:
    """The names of all parts of `masks` or `images`, in the order of their keys."""
    return [part for item in storage.list(f"{table}/part-") if (part := part_at(item.key))]


def parts_of(storage: Storage, shard_name: str) -> list[str]:
    """The names of the committed parts of one shard: as planned, first retry, second retry..."""
    names = (part_name(int(shard_name), retry) for retry in itertools.count())
    return list(itertools.takewhile(lambda part: storage.exists(masks_key(part)), names))
