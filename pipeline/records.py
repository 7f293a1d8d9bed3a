"""The data types of the pipeline, from shard to commit."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from maskmill.filters.agreement import Agreement
from maskmill.pipeline.errors import ConfigError
from maskmill.pipeline.parts import part_name

Clock = Callable[[], float]
Status = Literal["ok", "failed", "quarantined"]
OutputMode = Literal["binary_mask", "uncompressed_rle", "coco_rle"]

# The steps of processing an image, in order. Each is timed, and an image can fail in each.
STEPS = ("fetch", "decode", "encode", "prompt", "filter", "rle")


def process_name() -> str:
    """The name of this process in the output: host and process id. The host of a Kubernetes pod is the pod's name."""
    return f"{socket.gethostname()}:{os.getpid()}"


@dataclass(frozen=True)
class Shard:
    """A unit of lease, retry and commit: the images that become one part."""

    index: int
    uri: str  # what to open: the folder or prefix, or one tar
    # The images, in order; None if they are known only after reading the shard (a tar).
    image_ids: tuple[str, ...] | None = None
    # The number of the retry of failed images; 0 for the shard as planned.
    retry: int = 0
    # Only for the retry of a tar, in place of `image_ids`: images to skip, because an earlier part has their masks, and
    # the ids of failed rows, which need new rows: see `missing`.
    skip: frozenset[str] = frozenset()
    again: frozenset[str] = frozenset()
    # image_id -> address, for sources where the id does not determine it. May hold further images.
    uris: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)

    @property
    def name(self) -> str:
        """The name of the part that holds the results of this shard."""
        return part_name(self.index, self.retry)

    def only(self, image_id: str) -> Shard:
        """The shard with one of its images. A tar is read whole: it is returned unchanged."""
        if self.image_ids is None:
            return self
        return replace(self, image_ids=(image_id,), uris={k: uri for k, uri in self.uris.items() if k == image_id})

    def is_archive(self, image_id: str) -> bool:
        """Whether this is the id of the row for the tar itself, its path. That row says why the tar cannot be read."""
        return self.image_ids is None and self.uri.endswith(f"/{image_id}")

    def missing(self, image_ids: Collection[str]) -> set[str]:
        """The ids that need a row in the part of the shard and are not among the images that the source returned.

        The failed row of a tar itself represents its unread images. It needs no new row once any image was read.
        """
        missing = {*(self.image_ids or ()), *self.again}.difference(image_ids)
        return {image_id for image_id in missing if not (image_ids and self.is_archive(image_id))}


@dataclass(frozen=True)
class Failure:
    """The reason why an image has no masks. It becomes a row of the images table."""

    step: str  # one of STEPS
    reason: str


@dataclass(frozen=True)
class ImageRecord:
    """One encoded image from its source, or why it could not be fetched."""

    image_id: str
    source_uri: str
    data: bytes | Failure


@dataclass(frozen=True, eq=False)
class DecodedImage:
    """RGB pixels (H, W, 3) uint8, upright."""

    pixels: NDArray[np.uint8]
    sha256: str  # of the encoded bytes


@dataclass(frozen=True, eq=False)
class ImageMasks:
    """The final masks of one image, N rows, and the number of masks that each filter dropped. Arrays are read-only."""

    height: int
    width: int
    area: NDArray[np.int64]  # (N,) pixels
    boxes: NDArray[np.int64]  # (N, 4) XYWH, w = x1 - x0: the pixel count minus one, as in SA-1B
    predicted_iou: NDArray[np.float32]  # (N,)
    stability_score: NDArray[np.float32]  # (N,)
    points: NDArray[np.float64]  # (N, 2) XY
    crop_boxes: NDArray[np.int64]  # (N, 4) XYWH
    rle_counts: tuple[bytes, ...]  # COCO compressed
    dropped: Mapping[str, int]  # filter name -> masks; the keys are filters.names.FILTERS

    def __post_init__(self) -> None:
        rows = len(self.rle_counts)
        assert self.area.shape == self.predicted_iou.shape == self.stability_score.shape == (rows,)
        assert self.boxes.shape == self.crop_boxes.shape == (rows, 4)
        assert self.points.shape == (rows, 2)
        for column in fields(self):
            if isinstance(array := getattr(self, column.name), np.ndarray):
                array.flags.writeable = False

    def __len__(self) -> int:
        return len(self.rle_counts)

    @property
    def scores(self) -> NDArray[np.float32]:
        """(N,) the predicted IoU; can exceed 1."""
        return self.predicted_iou

    @property
    def rles(self) -> list[dict[str, Any]]:
        """The masks in the format of pycocotools: `size` (H, W) and compressed `counts` (bytes)."""
        return [{"size": [self.height, self.width], "counts": counts} for counts in self.rle_counts]

    @cached_property
    def masks(self) -> NDArray[np.bool_]:
        """(N, H, W). Decoded on first access and kept in memory: N x H x W bytes. `decode` decodes one mask."""
        masks_NHW = np.empty((len(self), self.height, self.width), np.bool_)
        for row in range(len(self)):
            masks_NHW[row] = self.decode(row)
        masks_NHW.flags.writeable = False
        return masks_NHW

    def decode(self, row: int) -> NDArray[np.bool_]:
        """One mask, (H, W)."""
        from maskmill.filters import rle  # imported here: OpenCV and pycocotools load slowly

        return rle.decode(self.rle_counts[row], self.height, self.width)

    def to_dicts(self, output_mode: OutputMode = "binary_mask") -> list[dict[str, Any]]:
        """The masks as `SamAutomaticMaskGenerator.generate` returns them: one dictionary per mask, with the same keys.

        `segmentation` is a boolean array (H, W) or an RLE. Its `counts` are a list of run lengths for
        `uncompressed_rle` and a string for `coco_rle`. Raises ConfigError for any other `output_mode`.
        """
        if output_mode not in get_args(OutputMode):
            raise ConfigError(
                f"there is no output mode {output_mode!r}; choose one of {', '.join(get_args(OutputMode))}"
            )
        return [
            {
                "segmentation": self._segmentation(row, output_mode),
                "area": int(self.area[row]),
                "bbox": self.boxes[row].tolist(),
                "predicted_iou": float(self.predicted_iou[row]),
                "point_coords": [self.points[row].tolist()],
                "stability_score": float(self.stability_score[row]),
                "crop_box": self.crop_boxes[row].tolist(),
            }
            for row in range(len(self))
        ]

    def _segmentation(self, row: int, output_mode: OutputMode) -> NDArray[np.bool_] | dict[str, Any]:
        from maskmill.filters import rle

        if output_mode == "binary_mask":
            return self.decode(row)
        counts = self.rle_counts[row]
        coco = output_mode == "coco_rle"
        text = counts.decode() if coco else rle.run_lengths(counts, self.height, self.width)
        return {"size": [self.height, self.width], "counts": text}


@dataclass(frozen=True, eq=False)
class ImageResult:
    """The result of one input image: its masks or its failure. One row of the images table."""

    image_id: str
    source_uri: str
    sha256: str | None  # None if the file could not be read
    outcome: ImageMasks | Failure
    milliseconds: Mapping[str, float]  # step -> time spent
    status: Status
    attempt: int = 1
    audit: Agreement | Failure | None = None  # not part of the table


@dataclass(frozen=True)
class Work:
    """Which process made a part, and when. Times are seconds since 1970 by the clock of its machine."""

    worker: str  # host:process id
    began: float  # the first image got the device
    ended: float  # the last image was finished


@dataclass
class StepTimer:
    """Adds up the milliseconds spent in each step of one image. Thread-safe."""

    clock: Clock = time.perf_counter
    milliseconds: dict[str, float] = field(default_factory=dict[str, float])
    current: str = STEPS[0]  # the last step that was entered: if an exception is raised, the step that failed
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @contextmanager
    def step(self, name: str, threads: int = 1) -> Generator[None]:
        """Times the block as step `name`. If `threads` threads time it at once, each adds its share of the time."""
        self.current = name
        start = self.clock()
        try:
            yield
        finally:
            with self._lock:
                spent = 1000 * (self.clock() - start) / threads
                self.milliseconds[name] = self.milliseconds.get(name, 0.0) + spent
