"""Pairs of masks per second: IoU from compressed RLEs, against pycocotools: python -m benchmarks.mask_pairs

All pairs of the masks of an image. pycocotools is called once per image, which is its fastest way, and once per pair,
as a program would that has the pairs as rows. All ways take turns in one process; seconds are CPU time.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pycocotools import mask as coco

from benchmarks.machine import cpu_seconds
from maskmill.filters import rle_algebra
from maskmill.tables import functions
from testing.synthetic_runs import MaskPool, mask_pool

# Name -> share of the image that a mask covers: at least, at most.
SIZES = {"large": (0.05, 1.0), "all sizes": (0.0, 1.0)}
REFERENCE = "pycocotools.mask.iou, one call per image"
SQL = """
SELECT image, a.id, b.id, mask_iou(a.rle, b.rle, a.h, a.w) AS iou FROM masks a JOIN masks b USING (image)
"""


def measure(pool: MaskPool, chosen: NDArray[np.int64], images: int, masks: int, repeats: int) -> dict[str, float]:
    """Name -> pairs per second. Raises AssertionError if the results differ."""
    rng = np.random.default_rng(1)
    counts = [[pool.counts[k] for k in rng.choice(chosen, masks)] for _ in range(images)]
    size = pool.height, pool.width
    table = pa.table(
        {
            "image": np.repeat(np.arange(images), masks),
            "id": np.tile(np.arange(masks), images),
            "rle": [mask for image in counts for mask in image],
            "h": np.full(images * masks, size[0]),
            "w": np.full(images * masks, size[1]),
        }
    )
    connection = duckdb.connect(config={"threads": 1})
    connection.register("masks", table)
    functions.register(connection)

    def with_pycocotools() -> NDArray[np.float64]:
        ious: list[Any] = []
        for image in counts:
            rles: list[Any] = [{"size": list(size), "counts": mask} for mask in image]
            ious.append(coco.iou(rles, rles, [0] * masks))
        return np.concatenate(ious).ravel()

    def by_pair() -> NDArray[np.float64]:
        rles: list[Any] = [{"size": list(size), "counts": mask} for mask in counts[0]]
        return np.array([coco.iou([a], [b], [0])[0][0] for a in rles for b in rles])

    def in_sql() -> NDArray[np.float64]:
        rows = connection.sql(SQL).fetchnumpy()
        ious = np.empty(images * masks * masks)
        ious[(rows["image"] * masks + rows["id"]) * masks + rows["id_1"]] = rows["iou"]
        return ious

    ways: dict[str, Callable[[], Any]] = {
        REFERENCE: with_pycocotools,
        "pycocotools.mask.iou, one call per pair": by_pair,
        "rle_algebra.iou_matrix": lambda: np.concatenate(
            [rle_algebra.iou_matrix(image, image, *size).ravel() for image in counts]
        ),
        "mask_iou in SQL": in_sql,
    }
    expected = with_pycocotools()
    pairs = {name: len(way()) for name, way in ways.items()}
    for name, way in ways.items():
        np.testing.assert_allclose(way(), expected[: pairs[name]], rtol=0, atol=1e-12)
    seconds = cpu_seconds(ways, repeats)
    connection.close()
    return {name: pairs[name] / seconds[name] for name in ways}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10)
    parser.add_argument("--masks", type=int, default=100, help="per image")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    pool = mask_pool(1000, 1500, 2250)
    share = pool.area_K / (pool.height * pool.width)
    print(
        f"{arguments.images} images of 2250 x 1500 pixels, {arguments.masks} masks each; "
        f"medians of {arguments.repeats}\n"
    )
    print("| masks | way | pairs per second | against pycocotools |\n|---|---|---|---|")
    for name, (least, most) in SIZES.items():
        chosen = np.flatnonzero((share >= least) & (share <= most))
        figures = measure(pool, chosen, arguments.images, arguments.masks, arguments.repeats)
        for way, speed in figures.items():
            ratio = speed / figures[REFERENCE]
            print(f"| {name}: {100 * share[chosen].mean():.1f} % of the image | `{way}` | {speed:,.0f} | {ratio:.2g} |")


if __name__ == "__main__":
    main()
