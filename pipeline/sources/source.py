"""The Source interface, and the record of a source in a plan."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from maskmill.pipeline.records import ImageRecord, Shard
from maskmill.pipeline.sources.selection import ALL_NAMES, NameFilter


@dataclass(frozen=True)
class PlannedSource:
    """The record of a source in a plan. With a shard, it is enough to read the images of that shard."""

    kind: str  # a name in kinds.KINDS
    uri: str  # SOURCE: the address of a folder, a file or a pattern of files
    root: str  # address of the store; keys are relative to it
    names: NameFilter = ALL_NAMES  # selects the images

    @staticmethod
    def from_json(text: str | bytes) -> PlannedSource:
        """The inverse of `dataclasses.asdict` and JSON. Raises TypeError, KeyError or ValueError for other text."""
        fields = json.loads(text)
        return PlannedSource(names=NameFilter.from_json(fields.pop("names")), **fields)


class Source(Protocol):
    """Images in a fixed order, in shards. Implementations can be pickled, because Ray sends them to the workers.

    `read` returns an image that cannot be read as a record with a Failure instead of bytes. It raises only if the store
    cannot be reached: StorageError, never ObjectError. The shard must then be read again.
    """

    @property
    def uri(self) -> str:
        """SOURCE as a run records it: `open_source` opens the same source from it in any working directory."""
        ...

    @property
    def planned(self) -> PlannedSource:
        """The record for the plan: `open_planned` opens from it a source that reads the same shards."""
        ...

    def plan(self, images_per_shard: int) -> Iterator[Shard]:
        """Yields the shards, the same ones for the same contents.

        Raises SourceError, possibly after some shards, if the source is invalid. Memory: a few shards, and 8 bytes per
        line of a manifest.
        """
        ...

    def read(self, shard: Shard, left_out: Counter[str] | None = None) -> Iterator[ImageRecord]:
        """Yields the images of one shard in the order of the source; of a tar, all images in it.

        `left_out` counts, by reason, the images in a tar that are left out.
        """
        ...
