"""Images as files in folders, or as objects below a prefix."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath

from maskmill.pipeline.records import ImageRecord, Shard
from maskmill.pipeline.sources.names import fetch, fetch_ahead, is_image, is_tar, mixed
from maskmill.pipeline.sources.selection import ALL_NAMES, LeftOut, NameFilter
from maskmill.pipeline.sources.source import PlannedSource
from maskmill.pipeline.storage import ReadableStorage


@dataclass(frozen=True)
class ImageFolder:
    """The image files in a folder and its subfolders, sorted by key; with `only`, just those keys.

    image_id is the path relative to the folder, which is the key in `storage` and therefore unique. Links: see
    LocalStorage. Hidden files, system folders, label maps, files that `names` does not select and files without an
    image extension are left out, with one warning that counts them. A folder that also has tars is an error, because
    the user could mean either.
    """

    storage: ReadableStorage
    uri: str
    only: tuple[str, ...] | None = None
    names: NameFilter = ALL_NAMES

    @property
    def planned(self) -> PlannedSource:
        return PlannedSource("folder", self.uri, self.storage.uri, self.names)

    def plan(self, images_per_shard: int) -> Iterator[Shard]:
        keys = filter(self.names.keeps, self.only) if self.only else self._keys()
        for index in itertools.count():
            image_ids = tuple(itertools.islice(keys, images_per_shard))
            if not image_ids:
                return
            yield Shard(index, self.storage.uri, image_ids)

    def _keys(self) -> Iterator[str]:
        left_out = LeftOut(self.names)
        for item in self.storage.list(skip=left_out.skips):
            if is_image(item.key):
                yield item.key
            elif is_tar(item.key):
                raise mixed(self.uri, "images", "tars", ".tar")
            else:
                left_out.counts[PurePosixPath(item.key).suffix.lower() or "no extension"] += 1
        left_out.warn(self.uri)

    def read(self, shard: Shard, left_out: Counter[str] | None = None) -> Iterator[ImageRecord]:
        image_ids = shard.image_ids or ()
        for image_id, data in zip(image_ids, fetch_ahead(partial(fetch, self.storage), image_ids), strict=True):
            yield ImageRecord(image_id, f"{self.storage.uri}/{image_id}", data)
