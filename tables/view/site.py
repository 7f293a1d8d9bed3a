"""Writes the page as static files, for any web host."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from maskmill.pipeline.errors import ConfigError, ImageError, StorageError
from maskmill.tables.view.content import ASSETS, Content, asset, to_json
from maskmill.tables.view.listing import Found, Position

IMAGES_PER_LIST = 1000

logger = logging.getLogger(__name__)


def write_site(contents: Sequence[Content], folder: Path, limit: int) -> Iterator[Found]:
    """Writes the first `limit` images of the first run, and the same images of the second. Yields each when written.

    An image that cannot be read is written without its picture. Raises ConfigError if the folder is not empty,
    StorageError if a file cannot be written, SourceError if all images are gone, and ObjectError if a part is damaged.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ConfigError(f"--site {folder}: the folder is not empty: choose another one")
        yield from _write(contents, folder, limit)
    except OSError as error:
        raise StorageError(f"{error.filename or folder}: cannot be written: {error.strerror or error}") from error


def _write(contents: Sequence[Content], folder: Path, limit: int) -> Iterator[Found]:
    first, *others = contents
    summaries: list[list[Any]] = [[] for _ in contents]
    unreadable = 0
    for found in _first_images(first, limit):
        same = [content.listing.find(found.row["image_id"]) for content in others]
        for run, (content, image) in enumerate(zip(contents, [found, *same], strict=True)):
            if image is not None:
                unreadable += not _write_image(folder / "data" / str(run), content, image)
                # A site has no more images than these, so they are numbered anew.
                summaries[run].append({**content.summary(image), "number": len(summaries[run])})
        yield found
    for run, images in enumerate(summaries):
        for number, start in enumerate(range(0, len(images), IMAGES_PER_LIST)):
            listed = to_json(images[start : start + IMAGES_PER_LIST])
            _put(folder / "data" / str(run) / f"list-{number}.json", listed)
    site = {"images": len(summaries[0]), "lists": [-(-len(images) // IMAGES_PER_LIST) for images in summaries]}
    runs = {"runs": [content.description for content in contents], "site": site}
    _put(folder / "data" / "runs.json", to_json(runs))
    for name in ASSETS:
        _put(folder / name, asset(name))
    if unreadable:
        logger.warning("%s: %d images have no picture, because they cannot be read", folder, unreadable)


def _first_images(content: Content, limit: int) -> Iterator[Found]:
    start: Position | None = Position(0, 0)
    while start and limit > 0:
        page = content.listing.page(start, limit=min(limit, 240))
        yield from page.images
        limit -= len(page.images)
        start = page.next


def _write_image(folder: Path, content: Content, image: Found) -> bool:
    """Returns whether the image can be read."""
    _put(folder / f"{image.position}.json", to_json(content.image(image)))
    try:
        picture, thumbnail = content.picture(image), content.thumbnail(image)
    except ImageError:
        return image.row["status"] != "ok"  # the others are known
    _put(folder / f"{image.position}.jpg", picture)
    _put(folder / "thumbnail" / f"{image.position}.jpg", thumbnail)
    return True


def _put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
