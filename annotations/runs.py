"""The output of a maskmill run as annotations: masks from its tables, images from its source."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from maskmill.annotations.records import AnnotatedImage, AnnotationError, annotated_image
from maskmill.pipeline.errors import ObjectError, StorageError
from maskmill.pipeline.finished import Run, open_finished_run
from maskmill.pipeline.records import ImageRecord, Shard
from maskmill.pipeline.sources import Source, open_planned
from maskmill.pipeline.storage import open_storage


@dataclass(frozen=True)
class _Done:
    """An image that the run has processed without failure."""

    image_id: str
    height: int
    width: int
    part: str  # name of the part that holds its masks
    shard: Shard


@dataclass
class _Photographs:
    """Image files of a source by id. A tar is read in sequence: the position in it is kept between images."""

    source: Source
    _tar: Shard | None = None
    _rest: Iterator[ImageRecord] = field(default_factory=lambda: iter(()))  # the unread images of `_tar`

    def fetch(self, image_id: str, shard: Shard) -> bytes:
        """The content of an image file. Raises ObjectError if it is gone from the source or cannot be read."""
        if shard.image_ids is not None:
            record = _find(image_id, self.source.read(replace(shard, image_ids=(image_id,))))
        else:
            record = _find(image_id, self._rest) if self._tar == shard else None
            if record is None:
                self._tar, self._rest = shard, self.source.read(shard)
                record = _find(image_id, self._rest)
        if record is None:
            raise ObjectError("no longer where the run read it")
        if not isinstance(record.data, bytes):
            raise ObjectError(record.data.reason)
        return record.data

    def __reduce__(self) -> tuple[Any, ...]:
        return _Photographs, (self.source,)


def _find(image_id: str, records: Iterator[ImageRecord]) -> ImageRecord | None:
    return next((record for record in records if record.image_id == image_id), None)


@dataclass(frozen=True, eq=False)
class RunImages:
    """The images of a run that are done, in the order of its plan, with their masks."""

    run: Run
    done: tuple[_Done, ...]
    read_rles: Callable[[str, str], list[bytes]]  # Run.rle_reader
    photographs: _Photographs
    moved_to: str | None

    @property
    def name(self) -> str:
        return PurePosixPath(self.run.storage.uri).name

    def __len__(self) -> int:
        return len(self.done)

    def image_id(self, index: int) -> str:
        return self.done[index].image_id

    def __getitem__(self, index: int, /) -> AnnotatedImage:
        image = self.done[index]
        try:
            rles = self.read_rles(image.part, image.image_id)
        except StorageError as error:
            raise AnnotationError(str(error)) from error
        fetch = partial(self.photographs.fetch, image.image_id, image.shard)
        uri = f"{self.run.storage.uri}: {image.image_id}"
        size = (image.height, image.width)
        return annotated_image(image.image_id, uri, size, rles, fetch, decoding=self.run.decoding)

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process reads the list of images from the output.
        return open_run_images, (self.run.storage.uri, self.moved_to)


def open_run_images(uri: str, moved_to: str | None = None) -> RunImages:
    """The run in the output at `uri`, on disk or S3. Its images are where it read them, or at `moved_to`.

    Raises RunMismatchError if there is no run, AnnotationError if none of its images is done, SourceError if its
    source is gone, ObjectError if a part is damaged, and StorageError if the store cannot be reached.
    """
    run = open_finished_run(open_storage(uri), moved_to)
    source = open_planned(run.plan.source)
    done = [
        _Done(row["image_id"], row["image_height"], row["image_width"], row["shard"], done.shard)
        for done in run.done_shards()
        for row in done.images.to_pylist()
        if row["status"] == "ok"
    ]
    if not done:
        raise AnnotationError(f"{run.storage.uri}: no image of this run is done yet")
    return RunImages(run, tuple(done), run.rle_reader(), _Photographs(source), moved_to)
