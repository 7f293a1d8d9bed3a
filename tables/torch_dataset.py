"""A run as a map-style PyTorch data set."""

# pyarrow ships no types: strict checking would find every line that touches it unknown.
# pyright: standard
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.utils.data import Dataset

from maskmill.pipeline.finished import Run, RunImage
from maskmill.pipeline.parts import shard_of
from maskmill.pipeline.table import IMAGES


class MaskDataset(Dataset[Any]):
    """The images of a run that were processed without failure, in the order of its plan: `len(data)`, `data[i]`.

    Holds the rows of the images table, about 250 bytes per image. An item is read when it is asked for.
    """

    def __init__(self, run: Run, transform: Callable[[RunImage], Any]) -> None:
        self.run, self.transform = run, transform
        # Kept rather than read again in each worker: a run in progress has more images by then.
        done = (shard.images.filter(pc.field("status") == "ok") for shard in run.done_shards())
        self._images = pa.concat_tables([IMAGES.empty_table(), *done]).combine_chunks()

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Any:
        if not -len(self) <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        (row,) = self._images.slice(index % len(self), 1).to_pylist()
        return self.transform(self.run.image(self.run.plan.shard(int(shard_of(row["shard"]))), row))


def to_tensors(image: RunImage) -> tuple[Tensor, dict[str, Any]]:
    """The image (3, H, W) uint8, and a dictionary of its N masks.

    The dictionary has `masks` (N, H, W) bool, `boxes` (N, 4) float32 as x0, y0, x1, y1 with x1 and y1 exclusive,
    `scores` (N,) float32 and `image_id`.
    """
    boxes = torch.tensor(image.boxes, dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2] + 1  # the tables have w = x1 - x0 of the last pixel
    return torch.tensor(image.read_pixels()).permute(2, 0, 1), {
        "masks": torch.tensor(image.masks),
        "boxes": boxes,
        "scores": torch.tensor(image.scores),
        "image_id": image.image_id,
    }
