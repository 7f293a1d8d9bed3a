"""What a source holds: images, bytes and shards, counted in one pass with bounded memory, and a random sample."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

from maskmill.pipeline.errors import SourceError
from maskmill.pipeline.records import Shard
from maskmill.pipeline.sources import Source
from maskmill.pipeline.sources.names import is_image, is_parquet, is_tar
from maskmill.pipeline.storage import ReadableStorage, Skip, StoredObject

# The files that hold the images, by kind of source. The images of a manifest are not listed: their sizes are unknown.
_FILES: dict[str, Callable[[str], bool]] = {"folder": is_image, "tars": is_tar, "parquet": is_parquet}


@dataclass(frozen=True)
class Inventory:
    """The content of a source."""

    kind: str  # a name in kinds.KINDS
    images: int | None  # None if they are known only after reading the source (tars)
    shards: int
    bytes: int | None  # of the files with the images; None for a manifest
    sample: tuple[Shard, ...]  # random shards


def take_inventory(source: Source, images_per_shard: int, sample: int, seed: int = 0) -> Inventory:
    """Counts a source and draws up to `sample` shards, each with the same probability.

    Raises SourceError if the source is invalid or has no images, StorageError if the store cannot be reached.
    """
    kind = source.planned.kind
    weighed, size = _weigh(source, _FILES[kind]) if kind in _FILES else (source, lambda: None)
    drawn: list[Shard] = []
    draw = random.Random(seed)
    images, shards = 0, 0
    unlisted = False
    for shard in weighed.plan(images_per_shard):
        unlisted |= shard.image_ids is None
        images += len(shard.image_ids or ())
        shards += 1
        # Algorithm R: every shard so far is in the sample with the same probability.
        if len(drawn) < sample:
            drawn.append(shard)
        elif (place := draw.randrange(shards)) < sample:
            drawn[place] = shard
    if not shards:
        raise SourceError(f"{source.uri}: no images in it{source.planned.names.applied}")
    in_order = tuple(sorted(drawn, key=lambda shard: shard.index))
    return Inventory(kind, None if unlisted else images, shards, size(), in_order)


def _weigh(source: Any, holds_images: Callable[[str], bool]) -> tuple[Source, Callable[[], int]]:
    """The source, and a function that returns the bytes of its files once it has been planned."""
    storage: ReadableStorage = source.storage
    if source.only:  # one file or a pattern: the source lists nothing
        only = frozenset(source.only)
        equal = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(min(only), max(only), strict=False))
        listed = storage.list("".join(letter for letter, _ in equal))
        return source, lambda: sum(item.size for item in listed if item.key in only)
    scale = _Scale(storage, holds_images)
    return replace(source, storage=scale), lambda: scale.total


@dataclass
class _Scale:
    """A ReadableStorage that adds up the sizes of the objects that its listings return."""

    storage: ReadableStorage
    holds_images: Callable[[str], bool]
    total: int = field(default=0)  # bytes

    @property
    def uri(self) -> str:
        return self.storage.uri

    def list(self, prefix: str = "", skip: Skip = lambda key: False) -> Iterator[StoredObject]:
        for item in self.storage.list(prefix, skip):
            self.total += item.size if self.holds_images(item.key) else 0
            yield item

    def read(self, key: str) -> bytes:
        return self.storage.read(key)

    def open(self, key: str) -> BinaryIO:
        return self.storage.open(key)

    def exists(self, key: str) -> bool:
        return self.storage.exists(key)


def thinned(shard: Shard, images: int, seed: int = 0) -> Shard:
    """The shard with up to `images` of its images, chosen at random. A tar is returned unchanged: see `FirstImages`."""
    if shard.image_ids is None or len(shard.image_ids) <= images:
        return shard
    chosen = random.Random(f"{seed} {shard.index}").sample(range(len(shard.image_ids)), images)
    return replace(shard, image_ids=tuple(shard.image_ids[number] for number in sorted(chosen)))


@dataclass(frozen=True)
class FirstImages:
    """A Source that reads only the first images of each shard. It counts them and their bytes."""

    source: Source
    limit: int
    sizes: list[int] = field(default_factory=list[int])  # bytes of each image that was read

    @property
    def uri(self) -> str:
        return self.source.uri

    @property
    def planned(self) -> Any:
        return self.source.planned

    def plan(self, images_per_shard: int) -> Iterator[Shard]:
        return self.source.plan(images_per_shard)

    def read(self, shard: Shard, left_out: Any = None) -> Iterator[Any]:
        for record in itertools.islice(self.source.read(shard, left_out), self.limit):
            if isinstance(record.data, bytes):
                self.sizes.append(len(record.data))
            yield record
