"""Previews of a run: draws the masks in its tables over the images in its source."""

# pyarrow ships no types: strict checking would find every line that touches it unknown.
# pyright: standard
from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from maskmill.filters import rle
from maskmill.pipeline.config import DecodingConfig
from maskmill.pipeline.errors import SourceError
from maskmill.pipeline.finished import open_finished_run
from maskmill.pipeline.images import decode_image
from maskmill.pipeline.overlay import draw_masks
from maskmill.pipeline.records import ImageRecord
from maskmill.pipeline.sources import open_planned
from maskmill.pipeline.storage import Storage


@dataclass(frozen=True, eq=False)
class Overlay:
    """One image with its masks drawn on top."""

    image_id: str
    n_masks: int
    pixels: NDArray[np.uint8]  # (H, W, 3) RGB

    @property
    def caption(self) -> str:
        """The caption on a contact sheet."""
        return f"{self.image_id} · {self.n_masks} masks"


def overlays(storage: Storage, image_ids: Collection[str] = (), moved_to: str | None = None) -> Iterator[Overlay]:
    """Draws the given images of the run in `storage`, or all that are done so far, in the order of the plan.

    The images are read from `moved_to`, if it is given. Raises RunMismatchError if `storage` holds no run, SourceError
    if the source or an image is gone or a given image is not done, and ObjectError if a part is damaged.
    """
    run = open_finished_run(storage, moved_to)
    source = open_planned(run.plan.source)
    missing = set(image_ids)
    for done in run.done_shards():
        shard, images = done.shard, done.images.filter(pc.field("status") == "ok")
        parts = dict(zip(images["image_id"].to_pylist(), images["shard"].to_pylist(), strict=True))
        wanted = {image_id: part for image_id, part in parts.items() if not image_ids or image_id in image_ids}
        if not wanted:
            continue
        missing -= wanted.keys()
        # Single images can be read from a folder; a tar is read from its start.
        for record in source.read(shard if shard.image_ids is None else replace(shard, image_ids=tuple(wanted))):
            if part := wanted.pop(record.image_id, None):
                yield _overlay(record, run.mask_rows(part, record.image_id), run.decoding)
        if wanted:
            raise SourceError(f"{shard.uri}: {next(iter(wanted))} is missing from it now")
    if missing:
        raise SourceError(
            f"{storage.uri}: no masks of {', '.join(sorted(missing))}: not done yet, failed, or not in the run"
        )


def _overlay(record: ImageRecord, masks: pa.Table, decoding: DecodingConfig) -> Overlay:
    if not isinstance(record.data, bytes):
        raise SourceError(f"{record.source_uri}: {record.data.reason}")
    pixels = decode_image(record.data, decoding).pixels
    largest_first = masks.sort_by([("area", "descending")])["rle_counts"].to_pylist()
    height, width = pixels.shape[:2]
    try:
        drawn = draw_masks(pixels, [rle.decode(counts, height, width) for counts in largest_first])
    except ValueError as error:
        raise SourceError(f"{record.image_id}: {error}") from error
    return Overlay(record.image_id, len(masks), drawn)
