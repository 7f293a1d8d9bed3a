"""What a source of images is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from maskmill.pipeline.records import ImageRecord, Shard


class Source(Protocol):
    """Images in a fixed order, in shards. Implementations are picklable: they travel to the actors.

    What cannot be read is a record that holds a Failure instead of bytes. Only a store that cannot be reached raises
    from `read`: StorageError, but never ObjectError. Then the shard has to be read again.
    """

    @property
    def uri(self) -> str:
        """What `open_source` makes the same source of, anywhere."""
        ...

    def plan(self, images_per_shard: int) -> Iterator[Shard]:
        """The shards, the same for the same contents. SourceError, possibly after some shards, if it is unfit.

        It takes the memory of a few shards (and 8 bytes for each line of a manifest), however many there are.
        """
        ...

    def read(self, shard: Shard) -> Iterator[ImageRecord]:
        """The images of one shard, in the order of the source: those that it lists, where it lists any."""
        ...
