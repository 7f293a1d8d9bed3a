"""Images as files in folders, or as objects below a prefix."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath

from maskmill.pipeline.records import ImageRecord, Shard
from maskmill.pipeline.sources.names import fetch, fetch_ahead, is_image, is_tar, mixed
from maskmill.pipeline.sources.source import PlannedSource
from maskmill.pipeline.storage import Storage

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageFolder:
    """The images in a folder and the folders below it, by extension, sorted; or one of them.

    image_id is the path relative to the folder: the key below `storage`, of which a store has each once. Hidden and
    linked files: see LocalStorage. Other files are left out, with a warning that counts them; a folder that also holds
    tars is refused, since either could be what was meant.
    """

    storage: Storage
    uri: str
    only: tuple[str, ...] | None = None

    @property
    def planned(self) -> PlannedSource:
        return PlannedSource("folder", self.uri, self.storage.uri)

    def plan(self, images_per_shard: int) -> Iterator[Shard]:
        keys = iter(self.only or self._keys())
        for index in itertools.count():
            image_ids = tuple(itertools.islice(keys, images_per_shard))
            if not image_ids:
                return
            yield Shard(index, self.storage.uri, image_ids)

    def _keys(self) -> Iterator[str]:
        left_out: Counter[str] = Counter()
        for item in self.storage.list():
            if is_image(item.key):
                yield item.key
            elif is_tar(item.key):
                raise mixed(self.uri, "images", "tars", ".tar")
            else:
                left_out[PurePosixPath(item.key).suffix.lower() or "no extension"] += 1
        if left_out:
            kinds = ", ".join(f"{kind}: {count}" for kind, count in left_out.most_common(5))
            logger.warning("%s: %d files are no images and were left out (%s)", self.uri, left_out.total(), kinds)

    def read(self, shard: Shard) -> Iterator[ImageRecord]:
        image_ids = shard.image_ids or ()
        for image_id, data in zip(image_ids, fetch_ahead(partial(fetch, self.storage), image_ids), strict=True):
            yield ImageRecord(image_id, f"{self.storage.uri}/{image_id}", data)
