"""What changed between two runs, A and B, on the same images: masks are the same, moved, split, merged, born or died.

Shapes: an image of H W pixels has N masks in A and K in B.
"""

# pyarrow ships no types: strict checking would find every line that touches it unknown.
# pyright: standard
from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pycocotools import mask as coco

from maskmill.annotations.pairs import PairedMasks
from maskmill.filters import rle, rle_algebra
from maskmill.filters.matching import match
from maskmill.pipeline.finished import RunImage
from maskmill.pipeline.overlay import contact_sheet, draw_masks

INSIDE = 0.8  # a mask is a part of another if at least this share of its pixels is inside
APART = 0.2  # parts of one mask have at most this share of their pixels in common
ROWS_AT_ONCE = 65536


class Change(StrEnum):
    """What happened to masks from A to B."""

    SAME = "same"
    MOVED = "moved"
    SPLIT = "split"
    MERGED = "merged"
    BORN = "born"
    DIED = "died"


# For pictures.
COLOURS = {
    Change.MOVED: ("yellow", (255, 210, 0)),
    Change.SPLIT: ("blue", (60, 120, 255)),
    Change.MERGED: ("magenta", (230, 60, 230)),
    Change.BORN: ("green", (40, 200, 80)),
    Change.DIED: ("red", (230, 50, 50)),
}

DIFF = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("change", pa.string(), nullable=False),  # a value of Change
        pa.field("mask_ids_a", pa.list_(pa.int32()), nullable=False),
        pa.field("mask_ids_b", pa.list_(pa.int32()), nullable=False),
        pa.field("iou", pa.float64()),  # of the two sides, several masks as their union; null if a side is empty
        pa.field("area_a", pa.int64(), nullable=False),  # pixels, of the union
        pa.field("area_b", pa.int64(), nullable=False),
    ]
)


@dataclass(frozen=True)
class MaskChange:
    """A row of the table of changes: see DIFF."""

    image_id: str
    change: Change
    mask_ids_a: tuple[int, ...]
    mask_ids_b: tuple[int, ...]
    iou: float | None
    area_a: int
    area_b: int

    @property
    def changed_pixels(self) -> float:
        """The size of the change: the area of the larger side; for masks that only moved, the part that differs."""
        unchanged = {Change.SAME: 1.0, Change.MOVED: self.iou or 0}.get(self.change, 0)
        return (1 - unchanged) * max(self.area_a, self.area_b)


@dataclass(frozen=True, eq=False)
class ImageChanges:
    """The changes of one image; each mask of A and of B is in one of them."""

    image_id: str
    share: float  # the sum of `changed_pixels`, divided by the pixels of the image; can exceed 1 as masks overlap
    changes: tuple[MaskChange, ...]

    @property
    def counts(self) -> Counter[Change]:
        """The number of rows of each kind."""
        return Counter(row.change for row in self.changes)


def diff_masks(masks: PairedMasks, same: float, moved: float) -> ImageChanges:
    """The changes of one image.

    Masks with an IoU of at least `same` are the same. Of the others, a mask of A is split into two or more masks of B,
    if these lie inside it and hardly overlap, and if their union has an IoU of at least `moved` with it; masks are
    merged if the reverse holds; a pair with an IoU of at least `moved` has moved; what is left died or was born.
    """
    image = _Image(masks)
    iou_NK = rle_algebra.iou_matrix(masks.counts_N, masks.counts_K, masks.height, masks.width)

    def pairs(iou_NK: NDArray[np.float64], threshold: float) -> list[tuple[int, int]]:
        n, k = match(iou_NK, threshold)
        return list(zip(n.tolist(), k.tolist(), strict=True))

    rows = [image.row(Change.SAME, (n,), (k,)) for n, k in pairs(iou_NK, same)]

    def left() -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """The masks of A (N,) and of B (K,) that are in no row yet."""
        in_a, in_b = np.ones(len(masks.counts_N), np.bool_), np.ones(len(masks.counts_K), np.bool_)
        for row in rows:
            in_a[list(row.mask_ids_a)], in_b[list(row.mask_ids_b)] = False, False
        return in_a, in_b

    left_a, left_b = left()
    for n in np.flatnonzero(left_a).tolist():
        parts = image.parts(iou_NK[n], image.area_N[n], masks.counts_K, image.area_K, left_b)
        row = image.row(Change.SPLIT, (n,), parts)
        if len(parts) > 1 and row.iou is not None and row.iou >= moved:
            rows.append(row)
            left_b[list(parts)] = False
    left_a, left_b = left()
    for k in np.flatnonzero(left_b).tolist():
        parts = image.parts(iou_NK[:, k], image.area_K[k], masks.counts_N, image.area_N, left_a)
        row = image.row(Change.MERGED, parts, (k,))
        if len(parts) > 1 and row.iou is not None and row.iou >= moved:
            rows.append(row)
            left_a[list(parts)] = False
    left_a, left_b = left()
    iou_left = np.where(left_a[:, None] & left_b, iou_NK, -1)
    rows += [image.row(Change.MOVED, (n,), (k,)) for n, k in pairs(iou_left, moved)]
    left_a, left_b = left()
    rows += [image.row(Change.DIED, (n,), ()) for n in np.flatnonzero(left_a).tolist()]
    rows += [image.row(Change.BORN, (), (k,)) for k in np.flatnonzero(left_b).tolist()]
    changed = sum(row.changed_pixels for row in rows)
    return ImageChanges(masks.image_id, changed / (masks.height * masks.width), tuple(rows))


class _Image:
    """The masks of an image with their areas."""

    def __init__(self, masks: PairedMasks) -> None:
        self.masks = masks
        self.area_N, self.area_K = (rle_algebra.area(rle_algebra.pack(c)) for c in (masks.counts_N, masks.counts_K))

    def parts(
        self,
        iou_K: NDArray[np.float64],
        area: int,
        counts_K: Sequence[bytes],
        area_K: NDArray[np.int64],
        candidate_K: NDArray[np.bool_],
    ) -> tuple[int, ...]:
        """Those of K candidates that lie inside a mask and apart from each other, largest first.

        `iou_K` is their IoU with the mask and `area` the area of the mask.
        """
        common_K = iou_K / (1 + iou_K) * (area + area_K)
        inside = np.flatnonzero(candidate_K & (common_K >= INSIDE * np.maximum(area_K, 1)))
        parts: list[int] = []
        for k in inside[np.argsort(-area_K[inside], kind="stable")].tolist():
            chosen = [counts_K[part] for part in parts]
            iou = rle_algebra.iou_matrix([counts_K[k]], chosen, self.masks.height, self.masks.width)[0]
            common = iou / (1 + iou) * (area_K[k] + area_K[parts])
            if (common <= APART * area_K[k]).all():
                parts.append(k)
        return tuple(parts)

    def row(self, change: Change, ids_a: Sequence[int], ids_b: Sequence[int]) -> MaskChange:
        a = self._union([self.masks.counts_N[n] for n in ids_a])
        b = self._union([self.masks.counts_K[k] for k in ids_b])
        height, width = self.masks.height, self.masks.width
        return MaskChange(
            image_id=self.masks.image_id,
            change=change,
            mask_ids_a=tuple(ids_a),
            mask_ids_b=tuple(ids_b),
            iou=float(rle_algebra.iou_matrix([a], [b], height, width)[0, 0]) if ids_a and ids_b else None,
            area_a=rle.area(a, height, width) if ids_a else 0,
            area_b=rle.area(b, height, width) if ids_b else 0,
        )

    def _union(self, counts: Sequence[bytes]) -> bytes:
        if len(counts) == 1:
            return counts[0]
        size = [self.masks.height, self.masks.width]
        rles: list[Any] = [{"size": size, "counts": each} for each in counts]
        merged: Any = coco.merge(rles)  # its stub has no type for compressed counts
        return merged["counts"]


def write_changes(images: Iterator[ImageChanges], stream: BinaryIO) -> Iterator[ImageChanges]:
    """Writes the changes of each image to a Parquet file and yields them. The file is complete at the end."""
    with pq.ParquetWriter(stream, DIFF, compression="zstd") as writer:
        rows: list[MaskChange] = []
        for image in images:
            rows += image.changes
            if len(rows) >= ROWS_AT_ONCE:
                writer.write_table(pa.Table.from_pylist([asdict(row) for row in rows], DIFF))
                rows.clear()
            yield image
        writer.write_table(pa.Table.from_pylist([asdict(row) for row in rows], DIFF))


def draw_changes(a: RunImage, b: RunImage, changes: ImageChanges) -> NDArray[np.uint8]:
    """The image twice, side by side: the masks of A and those of B that are not the same, in COLOURS.

    Raises as `RunImage.read_pixels` does.
    """
    pixels = a.read_pixels()
    pictures: list[tuple[str, NDArray[np.uint8]]] = []
    for run, image, side in (("A", a, "mask_ids_a"), ("B", b, "mask_ids_b")):
        drawn = [
            (int(image.area[mask_id]), mask_id, COLOURS[row.change][1])
            for row in changes.changes
            if row.change in COLOURS
            for mask_id in getattr(row, side)
        ]
        drawn.sort(reverse=True)
        masks = (image.decode(mask_id) for _, mask_id, _ in drawn)
        caption = f"{run}: {len(image)} masks, {len(drawn)} of them changed"
        pictures.append((caption, draw_masks(pixels, masks, [colour for _, _, colour in drawn])))
    height, width = pixels.shape[:2]
    return contact_sheet(pictures, max(width, 320) + 8, height + 8)
