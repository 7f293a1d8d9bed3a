"""A run to export: odd names, masks with holes and several parts, an image without masks and one that failed."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maskmill.annotations.coco import coco_format
from maskmill.annotations.cvat import cvat_format
from maskmill.annotations.export import Format, ImagesMode, write_export
from maskmill.annotations.hugging_face import hugging_face_format
from maskmill.annotations.label_maps import label_map_format
from maskmill.annotations.label_studio import label_studio_format
from maskmill.annotations.sa1b import sa1b_format
from maskmill.annotations.selection import Selection, select
from maskmill.annotations.webdataset import webdataset_format
from maskmill.annotations.yolo import yolo_format
from maskmill.pipeline.finished import open_finished_run
from maskmill.pipeline.records import Failure, ImageResult
from maskmill.pipeline.storage import open_storage
from maskmill.pipeline.table import encode_part
from maskmill.tables.query import read_rows
from tests import runs
from tests.fakes import image_masks

HEIGHT, WIDTH = 40, 56
# Without a failure, in the order of the run: two that differ in their extension only, and hostile names.
NAMES = ("a.jpg", "a.png", "empty.jpg", "q\"uo'te <b>&;.jpg", "sub/ü 1.jpg", "two\nlines.jpg")
FAILED = "failed.jpg"

FORMATS: Mapping[str, Callable[[], Format]] = {
    "coco": coco_format,
    "coco, uncompressed": lambda: coco_format("uncompressed"),
    "coco, polygons": lambda: coco_format("polygon"),
    "sa1b": sa1b_format,
    "webdataset": lambda: webdataset_format(2),
    "hf, nested": lambda: hugging_face_format("nested", 2),
    "hf, tables": lambda: hugging_face_format("tables", 2),
    "yolo": yolo_format,
    "labels": label_map_format,
    "cvat": cvat_format,
    "labelstudio": label_studio_format,
}


def masks_of(name: str) -> NDArray[np.bool_]:
    """Four masks (4, H, W): a disc, a ring (a hole), two squares (two parts), a blob; none for empty.jpg."""
    if name == "empty.jpg":
        return np.zeros((0, HEIGHT, WIDTH), np.bool_)
    rng = np.random.default_rng(NAMES.index(name))
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    distance = np.hypot(y - rng.integers(12, 25), x - rng.integers(12, 40))
    squares = np.zeros((HEIGHT, WIDTH), np.bool_)
    squares[2:9, 3:7] = squares[30:33, 40:50] = True
    blob = cv2.GaussianBlur(rng.random((HEIGHT, WIDTH)), (0, 0), 3) > 0.5
    return np.stack([distance < 6, (distance < 11) & (distance > 7), squares, blob])


def picture(name: str) -> bytes:
    """The image file of an image, of `HEIGHT` x `WIDTH` pixels."""
    pixels_HW3 = np.random.default_rng(NAMES.index(name)).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels_HW3).save(buffer, "PNG")
    return buffer.getvalue()


def write_photographs(folder: Path) -> None:
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(name))
    (folder / FAILED).write_bytes(b"no image")


def make_run(source: str | Path, out: str | Path, images_per_shard: int = 2) -> None:
    """A run over the photographs in `source`. The images are not hashed."""
    job, plan = runs.begin(source, out, images_per_shard=images_per_shard)
    for shard in plan:
        results = [_result(image_id) for image_id in shard.image_ids or ()]
        job.ledger.commit(shard, encode_part(shard, results, job.ledger.identity))
        job.ledger.publish_images(shard.name)


def _result(image_id: str) -> ImageResult:
    failed = image_id == FAILED
    outcome = Failure("decode", "no image") if failed else image_masks(masks_of(image_id))
    return ImageResult(image_id, f"/photographs/{image_id}", None, outcome, {}, "failed" if failed else "ok")


def export(
    out: str | Path,
    dest: str | Path,
    form: Format,
    images: ImagesMode = "none",
    where: str | None = None,
    limit: int | None = None,
    on_progress: Callable[[int], None] = lambda images: None,
    moved_to: str | None = None,
) -> Selection:
    """An export as the command makes it."""
    run = open_finished_run(open_storage(str(out)), moved_to)
    selection = select(run, read_rows, where, limit, form.unique_stems)
    settings: dict[str, Any] = {"where": where, "limit": limit}
    write_export(selection, form, open_storage(str(dest), make=True), settings, images, on_progress)
    return selection
