"""The image files of a run for an export: read in the order of a selection, or linked."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from maskmill.annotations.selection import SelectedImage
from maskmill.pipeline.errors import ConfigError, SourceError
from maskmill.pipeline.finished import Run
from maskmill.pipeline.records import ImageRecord, Shard
from maskmill.pipeline.sources import Source, open_planned
from maskmill.pipeline.storage import file_name

LINKABLE = ("folder", "manifest")  # kinds of sources in which each image is a file


def read_image_files(run: Run, images: Iterable[SelectedImage]) -> Iterator[tuple[SelectedImage, bytes]]:
    """Each image with the content of its file. `images` are in the order of a selection.

    Raises SourceError if an image is gone or has changed since the run, StorageError if the store cannot be reached.
    """
    source = open_planned(run.plan.source)
    for shard, of_shard in _by_shard(run, images):
        wanted = list(of_shard)
        read = _read_tar if shard.image_ids is None else _read_listed
        for image, record in zip(wanted, read(source, shard, wanted), strict=True):
            yield image, _checked(image, record)


def link_targets(run: Run, images: Iterable[SelectedImage]) -> Iterator[tuple[SelectedImage, str]]:
    """Each image with the absolute path of its file. Raises ConfigError if the images are not files on this machine."""
    source = run.plan.source
    open_planned(source)  # raises if the images are gone
    if source.kind not in LINKABLE:
        raise ConfigError(f"--images link: the images of {source.uri} are inside of {source.kind}; give --images copy")
    for shard, of_shard in _by_shard(run, images):
        for image in of_shard:
            address = shard.uris.get(image.image_id, f"{source.root}/{image.image_id}")
            if "://" in address:
                raise ConfigError(f"--images link: {address} is not on this machine; give --images copy")
            path = Path(file_name(address))
            if not path.is_file():
                raise SourceError(f"{address}: no longer there; if the images have moved, give --source")
            yield image, str(path)


def _by_shard(run: Run, images: Iterable[SelectedImage]) -> Iterator[tuple[Shard, Iterator[SelectedImage]]]:
    shards = iter(run.plan)
    for index, of_shard in groupby(images, lambda image: image.shard):
        yield next(shard for shard in shards if shard.index == index), of_shard


def _read_listed(source: Source, shard: Shard, images: list[SelectedImage]) -> Iterator[ImageRecord]:
    return source.read(replace(shard, image_ids=tuple(image.image_id for image in images)))


def _read_tar(source: Source, shard: Shard, images: list[SelectedImage]) -> Iterator[ImageRecord]:
    """Reads the tar once, because its order can be another one: a temporary file holds the images."""
    wanted = {image.image_id for image in images}
    places: dict[str, tuple[ImageRecord, int, int]] = {}  # the record without data, offset and size
    with tempfile.TemporaryFile() as file:
        for record in source.read(shard):
            if record.image_id in wanted and isinstance(record.data, bytes):
                places[record.image_id] = replace(record, data=b""), file.tell(), len(record.data)
                file.write(record.data)
        for image in images:
            if image.image_id not in places:
                raise SourceError(f"{shard.uri}: {image.image_id} is missing from it now")
            record, offset, size = places[image.image_id]
            file.seek(offset)
            yield replace(record, data=file.read(size))


def _checked(image: SelectedImage, record: ImageRecord) -> bytes:
    if not isinstance(record.data, bytes):
        raise SourceError(f"{record.source_uri}: {record.data.reason}; if the images have moved, give --source")
    if image.sha256 and hashlib.sha256(record.data).hexdigest() != image.sha256:
        raise SourceError(f"{record.source_uri}: has changed since the run, so its masks may not fit")
    return record.data
