"""Writes tasks for Label Studio, with the masks as predictions that annotators correct.

Source: https://labelstud.io/guide/predictions, https://labelstud.io/tags/brushlabels
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from maskmill.annotations.export import ExportFile, ExportImage, Format
from maskmill.annotations.json_files import json_array
from maskmill.annotations.selection import Selection

LABEL = "mask"
_LABELING = f"""<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="masks" toName="image">
    <Label value="{LABEL}"/>
  </BrushLabels>
</View>
"""
_CHANNELS = 4  # Label Studio stores a mask as RGBA, with four equal channels
_LENGTH_BITS = (3, 4, 8, 16)  # the sizes in which a run length is stored


def label_studio_format(image_folder: str = "images/") -> Format:
    """Writes tasks.json and labeling.xml, the labeling configuration of the project.

    The addresses of images are those of local files (`/data/local-files/?d=...`), relative to the folder that Label
    Studio serves: DEST, if the images are copied or linked there, otherwise SOURCE.
    """

    def files(selection: Selection) -> Iterator[ExportFile]:
        yield ExportFile("tasks.json", len(selection), selection.images, partial(_encode, image_folder))
        yield ExportFile("labeling.xml", 0, lambda: iter(()), lambda _: [_LABELING.encode()])

    return Format("labelstudio", files, {"address": image_folder}, image_folder="images/")


def _encode(image_folder: str, images: Iterator[ExportImage]) -> Iterator[bytes]:
    return json_array(_task(image_folder, image) for image in images)


def _task(image_folder: str, image: ExportImage) -> dict[str, Any]:
    selected, masks = image.image, image.masks
    mask_ids = masks.rows["mask_id"].to_pylist()
    results = [
        {
            "id": f"{selected.number}-{mask_id}",
            "type": "brushlabels",
            "from_name": "masks",
            "to_name": "image",
            "original_width": masks.width,
            "original_height": masks.height,
            "image_rotation": 0,
            "score": float(masks.predicted_iou[row]),
            "value": {
                "format": "rle",
                "rle": list(brush_rle(masks.decode(row))),
                "brushlabels": [LABEL],
            },
        }
        for row, mask_id in enumerate(mask_ids)
    ]
    return {
        "data": {
            "image": f"/data/local-files/?d={quote(image_folder + selected.name)}",
            "image_id": selected.image_id,
        },
        "predictions": [{"model_version": "maskmill", "result": results}],
    }


def brush_rle(mask_HW: NDArray[np.bool_]) -> bytes:
    """A mask in the run-length encoding of Label Studio, a string of bits.

    A header, then for each run: 1, the index of the size in `_LENGTH_BITS`, the length minus 1, the value.
    """
    by_row = mask_HW.ravel()
    changes = np.flatnonzero(np.diff(by_row))
    ends = np.append(changes + 1, by_row.size)
    lengths = (_CHANNELS * np.diff(ends, prepend=0)).tolist()
    bits = [f"{_CHANNELS * by_row.size:032b}", f"{8 - 1:05b}", *(f"{size - 1:04b}" for size in _LENGTH_BITS)]
    for number, length in enumerate(lengths):
        value = "1" * 8 if by_row[0] ^ bool(number % 2) else "0" * 8
        while length > 0:
            part = min(length, 1 << _LENGTH_BITS[-1])
            place = next(place for place, size in enumerate(_LENGTH_BITS) if part <= 1 << size)
            bits.append(f"1{place:02b}{part - 1:0{_LENGTH_BITS[place]}b}{value}")
            length -= part
    text = "".join(bits)
    text += "0" * (8 - len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big")
