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


@dataclass(eq=False)
class Photographs:
    """Image files by id. Picklable and thread-safe.

    A tar is read in sequence and the position in it is kept: images in the order of the tar are fetched in one pass.
    """

    planned: PlannedSource
    _tar: Shard | None = None
    _rest: Iterator[ImageRecord] = field(default_factory=lambda: iter(()))  # the unread images of `_tar`
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @cached_property
    def source(self) -> Source:
        """The source, opened on first access. Raises SourceError if it is gone, StorageError."""
        return open_planned(self.planned)

    def fetch(self, image_id: str, shard: Shard) -> bytes:
        """The content of an image file. Raises ObjectError if it is gone from the source or cannot be read."""
        if shard.image_ids is not None:
            record = _find(image_id, self.source.read(shard.only(image_id)))
        else:
            with self._lock:
                record = self._find_in_tar(image_id, shard)
        if record is None:
            raise ObjectError("no longer where the run read it")
        if not isinstance(record.data, bytes):
            raise ObjectError(record.data.reason)
        return record.data

    def _find_in_tar(self, image_id: str, shard: Shard) -> ImageRecord | None:
        record = _find(image_id, self._rest) if self._tar == shard else None
        if record is None:
            self._tar, self._rest = shard, self.source.read(shard)
            record = _find(image_id, self._rest)
        return record

    def __reduce__(self) -> tuple[Any, ...]:
        return Photographs, (self.planned,)


def _find(image_id: str, records: Iterator[ImageRecord]) -> ImageRecord | None:
    return next((record for record in records if record.image_id == image_id), None)
