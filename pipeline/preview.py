"""Pictures of a run: the masks in its tables, drawn over the images in its source."""

# pyarrow ships no types: strict checking would find every line that touches it unknown.
# pyright: standard
from __future__ import annotations

import io
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from maskmill.filters import rle
from maskmill.pipeline.config import DecodingConfig
from maskmill.pipeline.errors import SourceError
from maskmill.pipeline.images import decode_image
from maskmill.pipeline.ledger import Ledger, masks_key, read_run
from maskmill.pipeline.overlay import draw_masks
from maskmill.pipeline.plan import read_plan
from maskmill.pipeline.records import ImageRecord
from maskmill.pipeline.sources import open_planned
from maskmill.pipeline.storage import Storage
from maskmill.pipeline.table import read_images, read_parquet


@dataclass(frozen=True, eq=False)
class Overlay:
    """One image with its masks drawn over it."""

    image_id: str
    n_masks: int
    pixels: NDArray[np.uint8]  # (H, W, 3) RGB

    @property
    def caption(self) -> str:
        """What stands under it on a contact sheet."""
        return f"{self.image_id} · {self.n_masks} masks"


def overlays(storage: Storage, image_ids: Collection[str] = (), moved_to: str | None = None) -> Iterator[Overlay]:
    """Draws the given images of the run in `storage`, or all that are done so far, in the order of the plan.

    Raises RunMismatchError where `storage` holds no run, SourceError where an image, or all of the source, is gone, and
    where a given image is not among the images that are done. The images are read from `moved_to`, if it is given.
    """
    run = read_run(storage)
    decoding = DecodingConfig.from_json(run["config"].get("decoding", {}))
    plan = read_plan(storage).at(moved_to)
    source = open_planned(plan.source)
    ledger = Ledger(storage, identity="")
    missing = set(image_ids)
    for shard in plan:
        for name in ledger.parts_of(shard.name):
            part = storage.read(masks_key(name))
            done = [row["image_id"] for row in read_images(io.BytesIO(part)).to_pylist() if row["status"] == "ok"]
            wanted = [image_id for image_id in done if not image_ids or image_id in image_ids]
            if not wanted:
                continue
            missing.difference_update(wanted)
            # Only a tar has to be read from its beginning.
            for record in source.read(shard if shard.image_ids is None else replace(shard, image_ids=tuple(wanted))):
                if record.image_id in wanted:
                    wanted.remove(record.image_id)
                    yield _overlay(record, part, decoding)
            if wanted:
                raise SourceError(f"{shard.uri}: {wanted[0]} is missing from it now")
    if missing:
        raise SourceError(
            f"{storage.uri}: no masks of {', '.join(sorted(missing))}: not done yet, failed, or no such image"
        )


def _overlay(record: ImageRecord, part: bytes, decoding: DecodingConfig) -> Overlay:
    if not isinstance(record.data, bytes):
        raise SourceError(f"{record.source_uri}: {record.data.reason}")
    pixels = decode_image(record.data, decoding).pixels
    table = read_parquet(part, ["image_id", "area", "rle_counts"])
    table = table.filter(pc.field("image_id") == record.image_id).sort_by([("area", "descending")])
    height, width = pixels.shape[:2]
    try:
        masks = [rle.decode(counts.as_py(), height, width) for counts in table["rle_counts"]]
    except ValueError as error:
        raise SourceError(f"{record.image_id}: {error}") from error
    return Overlay(record.image_id, len(table), draw_masks(pixels, masks))
