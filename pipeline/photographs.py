"""The image files of a run: fetched by image id from the source of the run."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from maskmill.pipeline.errors import ObjectError
from maskmill.pipeline.records import ImageRecord, Shard
from maskmill.pipeline.sources import PlannedSource, Source, open_planned

KEPT_BYTES = 64 << 20  # of image files in a tar that were read and not asked for


@dataclass(eq=False)
class Photographs:
    """Image files by id. Picklable and thread-safe.

    A tar is read in sequence and the position in it is kept: images in the order of the tar are fetched in one pass.
    Images that were passed over are kept too, up to KEPT_BYTES: several threads do not ask in order.
    """

    planned: PlannedSource
    _tar: Shard | None = None
    _rest: Iterator[ImageRecord] = field(default_factory=lambda: iter(()))  # the unread images of `_tar`
    _passed: dict[str, ImageRecord] = field(default_factory=dict[str, ImageRecord])
    _passed_bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @cached_property
    def source(self) -> Source:
        """The source, opened on first access. Raises SourceError if it is gone, StorageError."""
        return open_planned(self.planned)

    def fetch(self, image_id: str, shard: Shard) -> bytes:
        """The content of an image file. Raises ObjectError if it is gone from the source or cannot be read."""
        if shard.image_ids is not None:
            record = next(self.source.read(shard.only(image_id)), None)
        else:
            with self._lock:
                record = self._find_in_tar(image_id, shard)
        if record is None:
            raise ObjectError("no longer where the run read it")
        if not isinstance(record.data, bytes):
            raise ObjectError(record.data.reason)
        return record.data

    def _find_in_tar(self, image_id: str, shard: Shard) -> ImageRecord | None:
        if self._tar == shard and (record := self._passed.get(image_id) or self._advance_to(image_id)):
            return record
        self._tar, self._rest = shard, self.source.read(shard)
        self._passed.clear()
        self._passed_bytes = 0
        return self._advance_to(image_id)

    def _advance_to(self, image_id: str) -> ImageRecord | None:
        for record in self._rest:
            if record.image_id == image_id:
                return record
            self._passed[record.image_id] = record
            self._passed_bytes += _size(record)
            while self._passed_bytes > KEPT_BYTES:
                self._passed_bytes -= _size(self._passed.pop(next(iter(self._passed))))  # the oldest
        return None

    def __reduce__(self) -> tuple[Any, ...]:
        return Photographs, (self.planned,)


def _size(record: ImageRecord) -> int:
    return len(record.data) if isinstance(record.data, bytes) else 0
