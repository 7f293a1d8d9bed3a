"""What a source of images is, and what a plan records of it."""

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
    """The source of a plan: all that is needed, besides a shard, to read the images of that shard."""

    kind: str  # a name in kinds.KINDS
    uri: str  # SOURCE, as the user means it: a folder, a file or a pattern of files
    root: str  # address of the store: every key is relative to it
    names: NameFilter = ALL_NAMES  # images that it keeps

    @staticmethod
    def from_json(text: str | bytes) -> PlannedSource:
        """What `dataclasses.asdict` and JSON made the text of. TypeError, KeyError or ValueError where it is none."""
        fields = json.loads(text)
        return PlannedSource(names=NameFilter.from_json(fields.pop("names")), **fields)


class Source(Protocol):
    """Images in a fixed order, in shards. Implementations are picklable: they travel to the actors.

    What cannot be read is a record that holds a Failure instead of bytes. Only a store that cannot be reached raises
    from `read`: StorageError, but never ObjectError. Then the shard has to be read again.
    """

    @property
    def uri(self) -> str:
        """SOURCE, as a run remembers it. `open_source` makes the same source of it, anywhere."""
        ...

    @property
    def planned(self) -> PlannedSource:
        """What the plan records: `open_planned` makes a source of it that reads the same shards."""
        ...

    def plan(self, images_per_shard: int) -> Iterator[Shard]:
        """The shards, the same for the same contents. SourceError, possibly after some shards, if it is unfit.

        It takes the memory of a few shards (and 8 bytes for each line of a manifest), however many there are.
        """
        ...

    def read(self, shard: Shard, left_out: Counter[str] | None = None) -> Iterator[ImageRecord]:
        """The images of one shard, in the order of the source: those that it lists, where it lists any.

        Images that only reading finds and that are left out are counted in `left_out`, by reason.
        """
        ...
