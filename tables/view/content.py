"""What the page loads, from the server or from a site: JSON about runs, images and masks, and pictures as JPEG."""

from __future__ import annotations

import io
import json
import threading
from collections import OrderedDict
from collections.abc import Mapping
from functools import cached_property
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maskmill.pipeline.errors import ImageError, ObjectError
from maskmill.pipeline.finished import Run
from maskmill.pipeline.images import decode_image
from maskmill.pipeline.records import DecodedImage
from maskmill.tables.view.listing import Found, Listing, Page

# The page itself: name -> media type.
ASSETS = {
    "index.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
    **{
        f"{name}.js": "text/javascript; charset=utf-8"
        for name in ("main", "state", "source", "grid", "viewer", "stage", "masks")
    },
}
LONG_SIDE = 4096  # pixels, of a picture; larger images are reduced
THUMBNAIL_SIDE = 320
JPEG_QUALITY, THUMBNAIL_QUALITY = 92, 78
KEPT_THUMBNAIL_BYTES = 64 << 20
DECODED_AT_ONCE = 4  # a decoded image takes three bytes per pixel


def asset(name: str) -> bytes:
    """A file of the page, one of ASSETS."""
    return files("maskmill.tables.view").joinpath("page", name).read_bytes()


def to_json(value: Any) -> bytes:
    """JSON as the page reads it."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


class Content:
    """One run, as the page shows it. Thread-safe."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.listing = Listing(run)
        self._decoding = threading.Semaphore(DECODED_AT_ONCE)
        self._thumbnails: OrderedDict[str, bytes] = OrderedDict()
        self._thumbnail_bytes = 0
        self._lock = threading.Lock()

    @cached_property
    def description(self) -> Mapping[str, Any]:
        """The run as a whole. Reads nothing that grows with the run."""
        config = self.run.settings.get("config") or {}
        generator = config.get("generator") or {}
        return {
            "name": self.run.storage.uri.rstrip("/").rpartition("/")[2],
            "uri": self.run.storage.uri,
            "model": config.get("model"),
            "preset": config.get("preset"),
            "images": self.run.plan.n_images,
            "shards": len(self.run.plan),
            # No mask has lower scores: the sliders begin there.
            "lowest_iou": generator.get("pred_iou_thresh", 0),
            "lowest_stability": generator.get("stability_score_thresh", 0),
        }

    def page(self, page: Page) -> Mapping[str, Any]:
        """A page of the listing."""
        return {
            "images": [self.summary(found) for found in page.images],
            "next": page.next and str(page.next),
            "shards_before_next": page.next and page.next.shard,
        }

    def summary(self, found: Found) -> Mapping[str, Any]:
        """One image in a list."""
        row = found.row
        return {
            "at": str(found.position),
            "number": self.listing.number(found.position),
            "id": row["image_id"],
            "status": row["status"],
            "masks": row["n_masks"],
            "step": row["error_step"],
            "error": row["error"],
        }

    def image(self, found: Found) -> Mapping[str, Any]:
        """One image with its masks. Raises ObjectError if a part is damaged, and StorageError."""
        image = self.run.image(found.shard, found.row)
        return {
            **self.summary(found),
            "height": image.height,
            "width": image.width,
            "area": image.area.tolist(),
            "predicted_iou": _scores(image.predicted_iou),
            "stability_score": _scores(image.stability_score),
            "boxes": image.boxes.tolist(),
            "points": image.points.tolist(),
            "crops": image.crop_boxes.tolist(),
            "rles": [counts.decode("ascii") for counts in image.rle_counts],
        }

    def picture(self, found: Found) -> bytes:
        """The image as JPEG. Raises ImageError if it is gone, damaged or replaced since the run, or SourceError."""
        decoded = self._decode(found)
        if found.row["sha256"] not in (None, decoded.sha256):
            raise ImageError(f"{found.row['source_uri']}: the file has changed since the run")
        return _jpeg(decoded.pixels, LONG_SIDE, JPEG_QUALITY)

    def thumbnail(self, found: Found) -> bytes:
        """The image as a small JPEG. Raises ImageError if it is gone or damaged, or SourceError."""
        key = str(found.position)
        with self._lock:
            if data := self._thumbnails.get(key):
                self._thumbnails.move_to_end(key)
                return data
        data = _jpeg(self._decode(found).pixels, THUMBNAIL_SIDE, THUMBNAIL_QUALITY)
        with self._lock:
            if key not in self._thumbnails:
                self._thumbnails[key] = data
                self._thumbnail_bytes += len(data)
            while self._thumbnail_bytes > KEPT_THUMBNAIL_BYTES:
                self._thumbnail_bytes -= len(self._thumbnails.popitem(last=False)[1])
        return data

    def _decode(self, found: Found) -> DecodedImage:
        try:
            data = self.run.photographs.fetch(found.row["image_id"], found.shard)
        except ObjectError as error:
            raise ImageError(f"{found.row['source_uri']}: {error}") from error
        with self._decoding:
            return decode_image(data, self.run.decoding)


def _scores(scores: NDArray[np.float32]) -> list[float]:
    """Six decimals, more than the page shows; float32 would be written with 17 digits. NaN, which JSON lacks, is 0."""
    return np.nan_to_num(scores.astype(np.float64), posinf=0, neginf=0).round(6).tolist()


def _jpeg(pixels: Any, long_side: int, quality: int) -> bytes:
    picture = Image.fromarray(pixels)
    picture.thumbnail((long_side, long_side), Image.Resampling.BOX, reducing_gap=2)
    sink = io.BytesIO()
    picture.save(sink, "JPEG", quality=quality)
    return sink.getvalue()
