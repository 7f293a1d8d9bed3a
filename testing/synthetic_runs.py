"""Synthetic runs of any size: tables as `maskmill generate` writes them, without images and without a model.

python -m testing.synthetic_runs OUT --images 100000 --masks 20
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from maskmill.filters import rle
from maskmill.filters.names import FILTERS
from maskmill.pipeline.config import PRESETS, RunConfig
from maskmill.pipeline.ledger import RUN_KEY, Identity
from maskmill.pipeline.parts import images_key, masks_key
from maskmill.pipeline.plan import PLAN_KEY, encode_plan
from maskmill.pipeline.records import ImageMasks, ImageResult, Shard
from maskmill.pipeline.sources import PlannedSource
from maskmill.pipeline.storage import Storage, open_storage
from maskmill.pipeline.table import encode_part, images_part

SOURCE = "/photographs"
GRID = 32  # point prompts per side of an image, as in SA-1B


@dataclass(frozen=True, eq=False)
class MaskPool:
    """Masks of one image size that images draw from: making each mask anew would take most of the time."""

    height: int
    width: int
    counts: list[bytes]
    area_K: NDArray[np.int64]
    boxes_K4: NDArray[np.int64]

    def draw(self, masks: int, rng: np.random.Generator) -> ImageMasks:
        """The masks of one image, largest first."""
        chosen = rng.choice(len(self.counts), masks, replace=masks > len(self.counts))
        chosen = chosen[np.argsort(-self.area_K[chosen], kind="stable")]
        return ImageMasks(
            height=self.height,
            width=self.width,
            area=self.area_K[chosen],
            boxes=self.boxes_K4[chosen],
            predicted_iou=rng.uniform(0.7, 1.05, masks).astype(np.float32),
            stability_score=rng.uniform(0.9, 1.0, masks).astype(np.float32),
            points=(rng.integers(GRID, size=(masks, 2)) + 0.5) * (self.width, self.height) / GRID,
            crop_boxes=np.tile(np.array([[0, 0, self.width, self.height]], np.int64), (masks, 1)),
            rle_counts=tuple(self.counts[k] for k in chosen),
            dropped={name: int(rng.integers(50)) for name in FILTERS},
        )


def mask_pool(masks: int, height: int, width: int, seed: int = 0) -> MaskPool:
    """Masks of blobs with uneven outlines. The logarithm of their size is uniform, as it nearly is in SA-1B.

    In images of 2250x1500 zstd compresses their RLEs to the same share as those of 762 masks that `mini` found in
    photographs: 47 % at level 1, 44 % at level 9. They have 3.9 bytes per square root of the area; those of `mini` 3.7.
    """
    rng = np.random.default_rng(seed)
    counts = [rle.encode(_blob(height, width, rng)) for _ in range(masks)]
    sizes = (np.full(masks, side) for side in (height, width))
    area_K, boxes_K4, _ = rle.measure(counts, *sizes)
    return MaskPool(height, width, counts, area_K, boxes_K4)


def _blob(height: int, width: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    angles = np.linspace(0, 2 * np.pi, 256, endpoint=False)
    waves = sum(rng.normal(0, 0.3 / k) * np.sin(k * angles + rng.uniform(0, 6)) for k in range(1, 24))
    radius = np.exp(rng.uniform(np.log(4), np.log(min(height, width) / 2))) * np.maximum(0.2, 1 + waves)
    centre = rng.uniform(0, (width, height))
    outline = centre + np.stack([np.cos(angles), np.sin(angles)], 1) * radius[:, None] * rng.uniform(0.5, 1, 2)
    mask_HW = cv2.fillPoly(np.zeros((height, width), np.uint8), [outline.round().astype(np.int32)], 1)
    x, y = np.clip(centre, 0, (width - 1, height - 1)).astype(int)
    mask_HW[y, x] = 1  # never empty
    return mask_HW.astype(np.bool_)


def write_run(
    storage: Storage,
    images: int,
    masks_per_image: int,
    pool: MaskPool,
    images_per_shard: int = 64,
    seed: int = 0,
) -> None:
    """Writes a finished run over `images` images that do not exist: 0000/0000000.jpg, ..."""
    ids = [f"{index // 1000:04d}/{index:07d}.jpg" for index in range(images)]
    shards = [
        Shard(index, SOURCE, tuple(ids[start : start + images_per_shard]))
        for index, start in enumerate(range(0, images, images_per_shard))
    ]
    identity = Identity(SOURCE, "0" * 64, RunConfig("mini", "mini", PRESETS["mini"]))
    storage.create(RUN_KEY, identity.to_json().encode())
    storage.create(PLAN_KEY, encode_plan(PlannedSource("folder", SOURCE, SOURCE), shards))
    rng = np.random.default_rng(seed)
    for shard in shards:
        results = [_result(image_id, pool.draw(masks_per_image, rng), rng) for image_id in shard.image_ids or ()]
        part = encode_part(shard, results, identity.sha256)
        storage.put(masks_key(shard.name), part)
        storage.put(images_key(shard.name), images_part(part))


def _result(image_id: str, masks: ImageMasks, rng: np.random.Generator) -> ImageResult:
    milliseconds = {"fetch": float(rng.gamma(2, 10)), "decode": float(rng.gamma(2, 20)), "encode": 500.0}
    return ImageResult(image_id, f"{SOURCE}/{image_id}", rng.bytes(32).hex(), masks, milliseconds, "ok")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--masks", type=int, default=100, help="per image")
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=640)
    arguments = parser.parse_args()
    pool = mask_pool(512, arguments.height, arguments.width)
    write_run(open_storage(arguments.out, make=True), arguments.images, arguments.masks, pool)


if __name__ == "__main__":
    main()
