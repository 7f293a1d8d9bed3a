"""Lists the images of a run in pages, with a search and a filter. Reads only the shards that a page needs."""

# pyarrow ships no types.
# pyright: standard
from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from maskmill.pipeline.finished import Run
from maskmill.pipeline.ledger import REQUESTS_AT_ONCE
from maskmill.pipeline.records import Shard

# A page that finds few images ends after so many shards, and says where to go on.
SHARDS_PER_PAGE = 256
MAX_SHARDS_AT_ONCE = 64
_POSITION = re.compile(r"(\d{1,9})\.(\d{1,9})", re.ASCII)

Show = Literal["all", "ok", "empty", "failed", "quarantined"]
SHOWS: Mapping[Show, pc.Expression | None] = {
    "all": None,
    "ok": pc.field("status") == "ok",
    "empty": (pc.field("status") == "ok") & (pc.field("n_masks") == 0),
    "failed": pc.field("status") == "failed",
    "quarantined": pc.field("status") == "quarantined",
}


@dataclass(frozen=True, order=True)
class Position:
    """The place of an image in its run: the number of its shard, and its row among the sorted images of the shard."""

    shard: int
    row: int

    def __str__(self) -> str:
        return f"{self.shard}.{self.row}"

    @staticmethod
    def parse(text: str) -> Position | None:
        """The inverse of str(); None if the text is not a position."""
        match = _POSITION.fullmatch(text)
        return match and Position(int(match[1]), int(match[2]))


LAST_ROW = 10**9 - 1  # no shard has as many


@dataclass(frozen=True)
class Found:
    """An image of a run: its place and its row of the images table."""

    position: Position
    shard: Shard
    row: Mapping[str, Any]


@dataclass(frozen=True)
class Page:
    """Some images in order, and where the next page begins. None if there are no more images."""

    images: list[Found]
    next: Position | None


class Listing:
    """The images of a run that are done, in the order of the plan."""

    def __init__(self, run: Run) -> None:
        self._run = run
        sizes = run.plan.sizes
        # The number of images before each shard; None if the plan does not list all images.
        self._before = None if run.plan.n_images is None else np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])

    def page(
        self, start: Position, step: Literal[1, -1] = 1, text: str = "", show: Show = "all", limit: int = 60
    ) -> Page:
        """At most `limit` images from `start` on; with a step of -1 backwards.

        `text` is part of the image id, in upper or lower case. A page has fewer images although there are more if
        they are far apart.
        """
        shards = self._run.plan.shards_from(start.shard, step, text)
        images: list[Found] = []
        read, at_once = 0, 2
        while some := list(islice(shards, at_once)):
            if read >= SHARDS_PER_PAGE:
                return Page(images, Position(some[0].index, 0 if step == 1 else LAST_ROW))
            for found in self._matches(some, start, step, text, show):
                if len(images) == limit:
                    return Page(images, found.position)
                images.append(found)
            read += len(some)
            at_once = min(2 * at_once, MAX_SHARDS_AT_ONCE)
        return Page(images, None)

    def at(self, position: Position) -> Found | None:
        """The image at a position. None if there is none, or if it is not done."""
        shard = next(self._run.plan.shards_from(position.shard), None)
        if shard is None or shard.index != position.shard:
            return None
        row = self._images(shard).slice(position.row, 1).to_pylist()
        return Found(position, shard, row[0]) if row else None

    def find(self, image_id: str) -> Found | None:
        """The image with this id. None if the run has no such image or has not processed it yet."""
        for shard in self._run.plan.shards_with(image_id):
            images = self._images(shard)
            row = pc.index(images["image_id"], image_id).as_py()  # pyright: ignore[reportAttributeAccessIssue]
            if row >= 0:
                return Found(Position(shard.index, row), shard, images.slice(row, 1).to_pylist()[0])
        return None

    def number(self, position: Position) -> int | None:
        """How many planned images are before this position. None if the plan does not list all images."""
        return None if self._before is None else int(self._before[position.shard]) + position.row

    def _matches(
        self, shards: list[Shard], start: Position, step: Literal[1, -1], text: str, show: Show
    ) -> Iterator[Found]:
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as threads:
            tables = list(threads.map(self._images, shards))
        for shard, images in zip(shards, tables, strict=True):
            rows = images.append_column("row", pa.array(np.arange(len(images))))
            if shard.index == start.shard:
                rows = rows.filter(pc.field("row") >= start.row if step == 1 else pc.field("row") <= start.row)
            if (condition := SHOWS[show]) is not None:
                rows = rows.filter(condition)
            if text:
                rows = rows.filter(pc.match_substring(rows["image_id"], text, ignore_case=True))  # pyright: ignore[reportAttributeAccessIssue]
            for row in rows.to_pylist()[::step]:
                yield Found(Position(shard.index, row.pop("row")), shard, row)

    def _images(self, shard: Shard) -> pa.Table:
        """The images of a shard, sorted by id. No rows if it is not done."""
        return self._run.done_shard(shard).images.sort_by("image_id")
