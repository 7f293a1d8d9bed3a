"""The same two pictures with the same masks in every format: small, of odd sizes, one with a name that is not ASCII.

Each picture is a PNG under a JPEG's name: the pixels come back as they were, and readers go by the contents.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maskmill.filters import rle
from maskmill.pipeline.table import encode_part
from tests import runs
from tests.fakes import image_result

Masks = list[NDArray[np.bool_]]

# Name of the file without extension -> (H, W).
SIZES = {"ü 1": (7, 5), "b": (6, 11)}


def pixels(name: str) -> NDArray[np.uint8]:
    """Noise (H, W, 3), no two channels alike."""
    return np.random.default_rng(len(name)).integers(0, 255, (*SIZES[name], 3), np.uint8)


def masks(name: str) -> Masks:
    """Three stripes that cover the picture, the last one in two pieces."""
    height, width = SIZES[name]
    map_HW = np.zeros((height, width), np.int64)
    map_HW[1:-1, 1:3] = 1
    map_HW[2:, 3:] = 2
    map_HW[0, 0] = 2
    return [map_HW == label for label in range(3)]


def png(pixels_HW3: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels_HW3).save(buffer, "PNG")
    return buffer.getvalue()


def write_photographs(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in SIZES:
        (folder / f"{name}.jpg").write_bytes(png(pixels(name)))


def compressed(mask_HW: NDArray[np.bool_]) -> dict[str, Any]:
    """As SA-1B, and COCO's own tools, write a mask."""
    return {"size": list(mask_HW.shape), "counts": rle.encode(mask_HW).decode()}


def uncompressed(mask_HW: NDArray[np.bool_]) -> dict[str, Any]:
    """As COCO has its crowds: numbers, the zeros first."""
    by_column = mask_HW.T.ravel()
    changes = np.flatnonzero(np.diff(by_column, prepend=False)).tolist()
    return {"size": list(mask_HW.shape), "counts": np.diff([0, *changes, by_column.size]).tolist()}


def coco_content(segment: Any = compressed) -> dict[str, Any]:
    """A COCO file of the two pictures. The annotations are not in the order of the images."""
    images = [
        {"id": 10 + i, "file_name": f"{name}.jpg", "height": height, "width": width}
        for i, (name, (height, width)) in enumerate(SIZES.items())
    ]
    annotations = [
        {"id": 100 * i + k, "image_id": 10 + i, "category_id": 1, "iscrowd": 0, "segmentation": segment(mask)}
        for i, name in reversed(list(enumerate(SIZES)))
        for k, mask in enumerate(masks(name))
    ]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}


def write_label_maps(folder: Path) -> Path:
    write_photographs(folder)
    for name in SIZES:
        map_HW = sum(label * mask.astype(np.uint8) for label, mask in enumerate(masks(name), start=1))
        Image.fromarray(np.asarray(map_HW, np.uint8)).save(folder / f"{name}.seg0.png")
    return folder


def write_coco(folder: Path) -> Path:
    write_photographs(folder)
    (folder / "instances.json").write_text(json.dumps(coco_content()))
    return folder / "instances.json"


def write_coco_uncompressed(folder: Path) -> Path:
    """In the folders that COCO itself has."""
    write_photographs(folder / "val2017")
    (folder / "annotations").mkdir()
    path = folder / "annotations" / "instances_val2017.json"
    path.write_text(json.dumps(coco_content(uncompressed), ensure_ascii=False), encoding="utf-8")
    return path


def write_sa1b(folder: Path) -> Path:
    write_photographs(folder)
    for i, (name, (height, width)) in enumerate(SIZES.items()):
        image = {"image_id": i, "file_name": f"{name}.jpg", "height": height, "width": width}
        annotations = [
            {"id": k, "segmentation": compressed(mask), "predicted_iou": 0.9, "stability_score": 0.95}
            for k, mask in enumerate(masks(name))
        ]
        (folder / f"{name}.json").write_text(json.dumps({"image": image, "annotations": annotations}))
    return folder


def write_run(folder: Path) -> Path:
    write_photographs(folder / "photographs")
    out = folder / "out"
    job, plan = runs.begin(folder / "photographs", out)
    for shard in plan:
        results = [image_result(image_id, np.stack(masks(Path(image_id).stem))) for image_id in shard.image_ids or ()]
        job.ledger.commit(shard, encode_part(shard, results, job.ledger.identity))
    return out


WRITERS = {
    "label maps": write_label_maps,
    "COCO": write_coco,
    "COCO, uncompressed": write_coco_uncompressed,
    "SA-1B": write_sa1b,
    "run": write_run,
}
