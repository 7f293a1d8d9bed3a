"""Reads the pictures of a run from its source, one image at a time."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace

from maskmill.pipeline.errors import ImageError
from maskmill.pipeline.finished import Run
from maskmill.pipeline.images import decode_image
from maskmill.pipeline.records import DecodedImage, ImageRecord, Shard
from maskmill.pipeline.sources import Source, open_planned

KEPT_BYTES = 128 << 20  # of a tar's images that were read before anybody asked for them
DECODED_AT_ONCE = 4  # a decoded image takes three bytes per pixel


class Pictures:
    """The images of a run, decoded as the run decoded them. Thread-safe.

    Folders, manifests and Parquet files give single images. A tar is read from its start, so it stays open: images in
    the order of the tar need one pass.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._lock = threading.Lock()
        self._opened: Source | None = None
        self._tar: _Tar | None = None  # the last one only, because its images take memory
        self._decoding = threading.Semaphore(DECODED_AT_ONCE)

    def read(self, shard: Shard, image_id: str) -> DecodedImage:
        """One image of a shard as planned. Raises ImageError if it is gone or cannot be decoded, or SourceError."""
        record = self._record(shard, image_id)
        if not isinstance(record.data, bytes):
            raise ImageError(f"{record.source_uri}: {record.data.reason}")
        with self._decoding:
            return decode_image(record.data, self._run.decoding)

    def _record(self, shard: Shard, image_id: str) -> ImageRecord:
        source = self._source()
        if shard.image_ids is not None:
            return next(source.read(replace(shard, image_ids=(image_id,))))
        with self._lock:
            if self._tar is None or self._tar.shard.index != shard.index:
                self._tar = _Tar(source, shard)
            return self._tar.find(image_id)

    def _source(self) -> Source:
        with self._lock:
            self._opened = self._opened or open_planned(self._run.plan.source)
            return self._opened


class _Tar:
    """The images of one tar, read from its start as far as needed. Keeps some of those that were passed over."""

    def __init__(self, source: Source, shard: Shard) -> None:
        self._source, self.shard = source, shard
        self._rest: Iterator[ImageRecord] = iter(())
        self._passed: OrderedDict[str, ImageRecord] = OrderedDict()
        self._passed_bytes = 0

    def find(self, image_id: str) -> ImageRecord:
        if record := self._passed.get(image_id) or self._advance_to(image_id):
            return record
        self._rest = self._source.read(self.shard)  # it is before the place that was reached
        if record := self._advance_to(image_id):
            return record
        raise ImageError(f"{self.shard.uri}: {image_id} is missing from it now")

    def _advance_to(self, image_id: str) -> ImageRecord | None:
        for record in self._rest:
            if record.image_id not in self._passed:
                self._passed[record.image_id] = record
                self._passed_bytes += _size(record)
            while self._passed_bytes > KEPT_BYTES:
                self._passed_bytes -= _size(self._passed.popitem(last=False)[1])
            if record.image_id == image_id:
                return record
        return None


def _size(record: ImageRecord) -> int:
    return len(record.data) if isinstance(record.data, bytes) else 0
