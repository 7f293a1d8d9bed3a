"""Makes a run of annotations in another format, so that they can be verified, queried, compared and viewed like a run.

Shapes: K masks of one image.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from maskmill.annotations.opening import open_annotations
from maskmill.annotations.records import AnnotatedImage, AnnotatedImages, AnnotationError
from maskmill.annotations.runs import RunImages
from maskmill.filters import rle
from maskmill.pipeline.errors import one_line_cause
from maskmill.pipeline.ledger import ImportIdentity, Ledger, open_run
from maskmill.pipeline.plan import MAX_IMAGES_PER_SHARD
from maskmill.pipeline.records import Failure, ImageMasks, ImageRecord, ImageResult, Shard
from maskmill.pipeline.sources import PlannedSource, open_planned
from maskmill.pipeline.sources.names import clean_path, unique
from maskmill.pipeline.storage import LocalStorage, Storage
from maskmill.pipeline.table import encode_part

MAX_REASON = 500  # characters


class Importable(AnnotatedImages, Protocol):
    """Annotated images that know where their image files belong, even if these are not there."""

    @property
    def format_name(self) -> str:
        """The name of the format: coco, sa1b..."""
        ...

    @property
    def path(self) -> Path:
        """The file or folder of the annotations."""
        ...

    @property
    def root(self) -> Path:
        """The folder of the image files."""
        ...

    def photograph(self, index: int) -> str:
        """The path of an image file relative to `root`. Reads the annotations as little as possible."""
        ...


@dataclass(frozen=True, eq=False)
class Import:
    """Annotations as a source for a run. The id of an image is the path of its file, as in a run over `root`."""

    images: Importable
    indices: dict[str, int]  # image_id -> index in `images`

    def __len__(self) -> int:
        return len(self.images)

    @property
    def uri(self) -> str:
        """The folder of the image files."""
        return LocalStorage(self.images.root.absolute()).uri

    @property
    def planned(self) -> PlannedSource:
        """The source of the run: a folder of images."""
        return PlannedSource("folder", self.uri, self.uri)

    def plan(self, images_per_shard: int) -> Iterator[Shard]:
        """The shards of the run, in the order of the annotations."""
        image_ids = iter(self.indices)
        for index in itertools.count():
            some = tuple(itertools.islice(image_ids, images_per_shard))
            if not some:
                return
            yield Shard(index, self.uri, some)

    def read(self, shard: Shard, left_out: Counter[str] | None = None) -> Iterator[ImageRecord]:
        """The image files of a shard."""
        return open_planned(self.planned).read(shard, left_out)


def open_import(source: Path | str, images: Path | None = None) -> Import:
    """Opens annotations for `write_import`. Their image files are in `images`, or are searched for near them.

    The image files may be missing. Raises AnnotationError if the annotations cannot be read, or are a run already.
    """
    annotations = open_annotations(source, images, images_needed=False)
    if isinstance(annotations, RunImages):
        raise AnnotationError(f"{source}: is the output of a run already")
    indices: dict[str, int] = {}
    seen: dict[str, int] = {}
    for index in range(len(annotations)):
        indices[unique(clean_path(annotations.photograph(index)) or "_", seen)] = index
    return Import(annotations, indices)


def write_import(
    opened: Import, storage: Storage, on_image: Callable[[ImageResult], None] = lambda result: None
) -> None:
    """Writes the run to `storage`, or what is missing of it. Calls `on_image` for each image that is written.

    An image with damaged annotations becomes a failed row with the file and the position of the damage.

    Raises RunMismatchError if `storage` holds anything else, and StorageError if it cannot be reached.
    """
    annotations = opened.images
    identity = ImportIdentity(opened.uri, annotations.format_name, str(annotations.path), _digest(annotations))
    ledger, plan = open_run(storage, identity, opened, MAX_IMAGES_PER_SHARD)
    for shard in plan.without(ledger.committed()):
        _write_shard(opened, shard, ledger, on_image)


def _write_shard(opened: Import, shard: Shard, ledger: Ledger, on_image: Callable[[ImageResult], None]) -> None:
    results = [_read(opened, image_id) for image_id in shard.image_ids or ()]
    ledger.commit(shard, encode_part(shard, results, ledger.identity))
    ledger.publish_images(shard.name)
    for result in results:
        on_image(result)


def _digest(annotations: Importable) -> str:
    """The SHA-256 of the file; of a folder, of the paths of its images."""
    if annotations.path.is_file():
        with open(annotations.path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    digest = hashlib.sha256()
    for index in range(len(annotations)):
        digest.update(f"{annotations.image_id(index)}\n".encode())
    return digest.hexdigest()


def _read(opened: Import, image_id: str) -> ImageResult:
    try:
        outcome, status = _to_masks(opened.images[opened.indices[image_id]]), "ok"
    except AnnotationError as error:
        outcome, status = Failure("decode", one_line_cause(error, MAX_REASON)), "failed"
    return ImageResult(image_id, f"{opened.uri}/{image_id}", None, outcome, {}, status)


def _to_masks(image: AnnotatedImage) -> ImageMasks:
    """The columns of the masks table. Those that the annotations do not have are filled in.

    Scores are 1, the point is the centre of the box, the crop is the whole image.
    """
    count = len(image)
    area_K, boxes_K4, _ = rle.measure(image.rles, np.full(count, image.height), np.full(count, image.width))
    columns = {
        "predicted_iou": np.ones(count),
        "stability_score": np.ones(count),
        "point_coords": (boxes_K4[:, :2] + boxes_K4[:, 2:] / 2)[:, None],
        "crop_box": np.tile(np.array([0, 0, image.width, image.height]), (count, 1)),
        **image.model_fields,
    }
    return ImageMasks(
        height=image.height,
        width=image.width,
        area=area_K,
        boxes=boxes_K4,
        predicted_iou=columns["predicted_iou"].astype(np.float32),
        stability_score=columns["stability_score"].astype(np.float32),
        points=columns["point_coords"][:, 0],
        crop_boxes=columns["crop_box"].astype(np.int64),
        rle_counts=image.rles,
        dropped={},
    )
