"""Reads and writes SA-1B: images `sa_1.jpg`, each with its masks in `sa_1.json`, in a folder or in folders below it.

Source: https://ai.meta.com/datasets/segment-anything-downloads, "Dataset format"
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from maskmill.annotations.export import ExportFile, ExportImage, Format, file_per_image
from maskmill.annotations.json_files import Fields, image_of_entries, image_size, read_json
from maskmill.annotations.records import AnnotatedImage, AnnotationError
from maskmill.annotations.selection import Selection

_HEAD = 4096  # characters


@dataclass(frozen=True)
class Sa1bFolder:
    """The JSON files of SA-1B, in the order of their paths. A file is read when its image is read."""

    folder: Path
    images: Path | None
    paths: tuple[str, ...]  # of the JSON files, relative to the folder
    format_name: str = "sa1b"

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def path(self) -> Path:
        """The folder, or its only file."""
        return self.folder / self.paths[0] if len(self.paths) == 1 else self.folder

    @property
    def root(self) -> Path:
        """See importing.Importable."""
        return self.images or self.folder

    def photograph(self, index: int) -> str:
        """See importing.Importable. Reads the start of a file, where the published files name the photograph."""
        path = PurePosixPath(self.paths[index])
        return str(self._place(path.parent / _photograph_name(self.folder / path)).relative_to(self.root))

    def _place(self, path: PurePosixPath) -> Path:
        """Where a photograph is. A folder of images may have the folders of the JSON files, or not."""
        flat = self.root / path.name
        return flat if self.images and flat.is_file() else self.root / path

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
        photograph = self._place(PurePosixPath(self.paths[index]).parent / _file_name(image, path))
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


def _file_name(image: Fields, path: Path) -> str:
    return str(image.get("file_name") or f"{path.stem}.jpg")


def _photograph_name(path: Path) -> str:
    """The name of the photograph of a JSON file; `sa_1.jpg` for a damaged sa_1.json."""
    try:
        with open(path, encoding="utf-8") as stream:
            head = stream.read(_HEAD)
        if start := re.match(r'\s*\{\s*"image"\s*:\s*(?=\{)', head):
            return _file_name(json.JSONDecoder().raw_decode(head, start.end())[0], path)
    except (OSError, ValueError):
        pass
    try:
        content = read_json(path)
    except AnnotationError:
        content = {}
    return _file_name(content["image"] if is_sa1b(content) else {}, path)


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
