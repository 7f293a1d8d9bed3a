"""The output of a maskmill run as annotations: masks from its tables, images from its source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from maskmill.annotations.records import AnnotatedImage, AnnotationError, annotated_image
from maskmill.pipeline.errors import StorageError
from maskmill.pipeline.finished import Run, open_finished_run
from maskmill.pipeline.records import Shard
from maskmill.pipeline.storage import open_storage


@dataclass(frozen=True)
class _Done:
    """An image that the run has processed without failure."""

    image_id: str
    height: int
    width: int
    part: str  # name of the part that holds its masks
    shard: Shard


@dataclass(frozen=True, eq=False)
class RunImages:
    """The images of a run that are done, in the order of its plan, with their masks."""

    run: Run
    done: tuple[_Done, ...]
    read_rles: Callable[[str, str], list[bytes]]  # Run.rle_reader
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
        fetch = partial(self.run.photographs.fetch, image.image_id, image.shard)
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
    _ = run.photographs.source  # fails now if it is gone, not at the first image
    done = [
        _Done(row["image_id"], row["image_height"], row["image_width"], row["shard"], done.shard)
        for done in run.done_shards()
        for row in done.images.to_pylist()
        if row["status"] == "ok"
    ]
    if not done:
        raise AnnotationError(f"{run.storage.uri}: no image of this run is done yet")
    return RunImages(run, tuple(done), run.rle_reader(), moved_to)
