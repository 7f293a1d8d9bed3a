"""The output of a maskmill run as annotations: its masks are in Parquet, its images where the run read them."""

# pyarrow ships no types: strict checking would find every line that touches it unknown.
# pyright: standard
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from maskmill.annotations.parts import read_counts, read_footer
from maskmill.annotations.records import AnnotatedImage, AnnotationError, annotated_image
from maskmill.pipeline.config import DecodingConfig
from maskmill.pipeline.errors import ObjectError, StorageError, one_line_cause
from maskmill.pipeline.ledger import Ledger, masks_key, read_run
from maskmill.pipeline.plan import read_plan
from maskmill.pipeline.records import ImageRecord, Shard
from maskmill.pipeline.sources import Source, open_planned
from maskmill.pipeline.storage import Storage, open_storage


@dataclass(frozen=True)
class _Done:
    """An image of the run that has masks, or was found to have none."""

    image_id: str
    height: int
    width: int
    part: str  # name of the part that has its masks
    shard: Shard


@dataclass
class _Photographs:
    """Images of a source by id. A tar can only be read from its start: it is read on from image to image."""

    source: Source
    _tar: Shard | None = None
    _rest: Iterator[ImageRecord] = field(default_factory=lambda: iter(()))  # of that tar

    def fetch(self, image_id: str, shard: Shard) -> bytes:
        """The image file. ObjectError where the source has it no more, or cannot give it."""
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


@dataclass
class _Masks:
    """The masks of a run by image. The part that was read last is kept: images that follow are in it."""

    storage: Storage
    _last: tuple[str, pa.Table] | None = field(default=None, repr=False)

    def of(self, image: _Done) -> list[bytes]:
        if self._last is None or self._last[0] != image.part:
            self._last = image.part, read_counts(self.storage, image.part)
        return self._last[1].filter(pc.field("image_id") == image.image_id)["rle_counts"].to_pylist()


@dataclass(frozen=True, eq=False)
class RunImages:
    """The images of a run that are done, in the order of its plan, with their masks."""

    uri: str
    done: tuple[_Done, ...]
    masks: _Masks
    photographs: _Photographs
    decoding: DecodingConfig
    moved_to: str | None

    @property
    def name(self) -> str:
        return PurePosixPath(self.uri).name

    def __len__(self) -> int:
        return len(self.done)

    def __getitem__(self, index: int, /) -> AnnotatedImage:
        image = self.done[index]
        try:
            rles = self.masks.of(image)
        except StorageError as error:
            raise AnnotationError(f"{self.uri}/{masks_key(image.part)}: {one_line_cause(error)}") from error
        fetch = partial(self.photographs.fetch, image.image_id, image.shard)
        return annotated_image(
            image.image_id,
            f"{self.uri}: {image.image_id}",
            (image.height, image.width),
            rles,
            fetch,
            decoding=self.decoding,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # What another process needs it finds in the output.
        return open_run_images, (self.uri, self.moved_to)


def open_run_images(uri: str, moved_to: str | None = None) -> RunImages:
    """The run in the output at `uri`, on disk or S3. Its images are where it read them, or at `moved_to`.

    Raises RunMismatchError where there is no run, AnnotationError where no image of it is done, SourceError where its
    images are gone, StorageError where the store cannot be reached.
    """
    storage = open_storage(uri)
    run = read_run(storage)
    plan = read_plan(storage).at(moved_to)
    source = open_planned(plan.source)
    ledger = Ledger(storage, identity="")
    done = [
        _Done(row["image_id"], row["image_height"], row["image_width"], part, shard)
        for shard in plan
        for part in ledger.parts_of(shard.name)
        for row in read_footer(storage, part).to_pylist()
        if row["status"] == "ok"
    ]
    if not done:
        raise AnnotationError(f"{storage.uri}: a run of which no image is done")
    decoding = DecodingConfig.from_json(run["config"].get("decoding", {}))
    return RunImages(storage.uri, tuple(done), _Masks(storage), _Photographs(source), decoding, moved_to)
