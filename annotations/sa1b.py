"""Reads and writes SA-1B: images `sa_1.jpg`, each with its masks in `sa_1.json`, in a folder or in folders below it.

Source: https://ai.meta.com/datasets/segment-anything-downloads, "Dataset format"
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from maskmill.annotations.export import ExportFile, ExportImage, Format, file_per_image
from maskmill.annotations.json_files import image_of_entries, image_size, read_json
from maskmill.annotations.records import AnnotatedImage, AnnotationError
from maskmill.annotations.selection import Selection


@dataclass(frozen=True)
class Sa1bFolder:
    """The JSON files of SA-1B, in the order of their paths. A file is read when its image is read."""

    folder: Path
    images: Path | None
    paths: tuple[str, ...]  # of the JSON files, relative to the folder

    @property
    def name(self) -> str:
        return self.folder.name

    def __len__(self) -> int:
        return len(self.paths)

    def image_id(self, index: int) -> str:
        return self.paths[index].removesuffix(".json")

    def __getitem__(self, index: int, /) -> AnnotatedImage:
        path = self.folder / self.paths[index]
        content = read_json(path)
        if not is_sa1b(content):
            raise AnnotationError(f"{path}: not an SA-1B file: it has no image with annotations")
        image, masks = content["image"], content["annotations"]
        photograph = (self.images or path.parent) / str(image.get("file_name", f"{path.stem}.jpg"))
        return image_of_entries(
            self.image_id(index),
            str(photograph),
            image_size(image, str(path)),
            masks,
            photograph.read_bytes,
            str(path),
        )


def is_sa1b(content: Any) -> bool:
    """Whether a JSON file holds the masks of one image in the SA-1B format."""
    return (
        isinstance(content, dict)
        and isinstance(content.get("image"), dict)
        and isinstance(content.get("annotations"), list)
        and all(isinstance(mask, dict) for mask in content["annotations"])
    )


def sa1b_format() -> Format:
    """Writes a JSON file per image, with the fields that the published files have. Ids start at 1."""

    def files(selection: Selection) -> Iterator[ExportFile]:
        return file_per_image(selection, lambda image: f"{image.stem}.json", _encode)

    return Format("sa1b", files, unique_stems=True)


def _encode(image: ExportImage) -> bytes:
    return json.dumps(sa1b_fields(image), allow_nan=False).encode()


def sa1b_fields(image: ExportImage) -> dict[str, Any]:
    """The content of the JSON file of an image."""
    selected = image.image
    return {
        "image": {
            "image_id": selected.number,
            "width": selected.width,
            "height": selected.height,
            "file_name": PurePosixPath(selected.name).name,
        },
        "annotations": [
            fields | {"id": selected.first_mask + row + 1}
            for row, fields in enumerate(image.masks.to_dicts("coco_rle"))
        ],
    }
