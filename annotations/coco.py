"""Reads and writes COCO instances: one JSON file with the images and their annotations. LVIS uses the same format.

Source: https://cocodataset.org/#format-data
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import urlsplit

from maskmill.annotations.export import ExportFile, ExportImage, Format
from maskmill.annotations.json_files import (
    Fields,
    image_of_entries,
    image_size,
    json_object,
    read_first,
    read_json,
)
from maskmill.annotations.polygons import HOLES, edge_outline
from maskmill.annotations.records import MODEL_FIELDS, AnnotatedImage, AnnotationError
from maskmill.annotations.selection import SelectedImage, Selection

# A folder holds the photographs of a file if one of this many images is in it.
LOOKED_FOR = 20
_KEPT = ("id", "segmentation", "iscrowd", *MODEL_FIELDS)


@dataclass(frozen=True, eq=False)
class CocoInstances:
    """The images of a COCO file, in its order. The masks of an image are decoded when the image is read."""

    path: Path
    images_option: Path | None
    root: Path  # the folder that the file names are relative to
    images: tuple[Fields, ...]
    annotations: dict[Any, list[Fields]]  # image id -> its annotations

    format_name: str = "coco"

    @property
    def name(self) -> str:
        return self.path.name

    def __len__(self) -> int:
        return len(self.images)

    def photograph(self, index: int) -> str:
        """See importing.Importable."""
        places = places_of(self.root, self.image_id(index))
        found = next((place for place in places if place.is_file()), places[0])
        return str(found.relative_to(self.root))

    def image_id(self, index: int) -> str:
        return _file_name(self.images[index])

    def __getitem__(self, index: int, /) -> AnnotatedImage:
        image = self.images[index]
        file_name = _file_name(image)
        where = f"{self.path}: image {file_name}"
        paths = places_of(self.root, file_name)
        return image_of_entries(
            file_name,
            str(paths[0]),
            image_size(image, where),
            self.annotations.get(image["id"], []),
            partial(read_first, paths),
            where,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process reads the file again: that is faster than unpickling its content.
        return open_coco, (self.path, self.images_option)


def is_coco(content: Any) -> bool:
    """Whether a JSON file holds images and annotations in the COCO format."""
    return isinstance(content, dict) and isinstance(content.get("images"), list) and "annotations" in content


def open_coco(path: Path, images: Path | None = None) -> CocoInstances:
    """The COCO file at `path`. Raises as `coco_of` does."""
    return coco_of(read_json(path, compact), path, images)


def compact(entry: Fields) -> Fields:
    """An annotation without unused fields, and with polygons as arrays. For `read_json`.

    A COCO file then takes 2.5 bytes of memory per byte, instead of 6.6.
    """
    if "segmentation" not in entry or "image_id" not in entry:
        return entry
    kept = {key: entry[key] for key in ("image_id", *_KEPT) if key in entry}
    if isinstance(kept["segmentation"], list):
        kept["segmentation"] = list(map(_packed, kept["segmentation"]))
    return kept


def _packed(polygon: Any) -> Any:
    try:
        return array("d", polygon)
    except (TypeError, OverflowError):  # damaged: reading the image names it
        return polygon


def coco_of(content: Fields, path: Path, images: Path | None = None, images_needed: bool = True) -> CocoInstances:
    """The COCO file at `path` with this content. Its photographs are in `images`, or are searched for near the file.

    Raises AnnotationError if entries are missing or repeated, if the annotations have no masks, or if the photographs
    are needed and not found.
    """
    entries = _entries(content, "images", path)
    if not entries:
        raise AnnotationError(f"{path}: no images in it")
    for entry in entries:
        if not isinstance(entry.get("id"), int | str) or not _file_name(entry):
            raise AnnotationError(f"{path}: an image without id, or without file_name: {str(entry)[:100]}")
    by_image: dict[Any, list[Fields]] = {entry["id"]: [] for entry in entries}
    if len(by_image) < len(entries) or len(set(map(_file_name, entries))) < len(entries):
        raise AnnotationError(f"{path}: two images have the same id or the same file_name")
    annotations = _entries(content, "annotations", path)
    if annotations and not any("segmentation" in annotation for annotation in annotations):
        raise AnnotationError(
            f"{path}: COCO without masks: no annotation has a segmentation, they have {', '.join(annotations[0])}"
        )
    for annotation in annotations:
        # A file that holds a selection of images may still hold the annotations of the others.
        image_id = annotation.get("image_id")
        if isinstance(image_id, int | str) and image_id in by_image:
            by_image[image_id].append({key: annotation[key] for key in _KEPT if key in annotation})
    root = find_root(path, [_file_name(entry) for entry in entries[:LOOKED_FOR]], images, images_needed)
    return CocoInstances(path, images, root, tuple(entries), by_image)


def _entries(content: Fields, key: str, path: Path) -> list[Fields]:
    entries = content.get(key)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise AnnotationError(f"{path}: {key!r} is not a list of entries")
    return entries


def _file_name(image: Fields) -> str:
    """The path of an image below the folder of photographs; "" if the entry has none. LVIS gives URLs only."""
    if name := image.get("file_name"):
        return str(name)
    return "/".join(PurePosixPath(urlsplit(str(image.get("coco_url", ""))).path).parts[-2:])


def places_of(root: Path, file_name: str) -> list[Path]:
    """Paths that a photograph may have: the names of some collections begin with the folder of the split."""
    direct, below = root / file_name, root / PurePosixPath(file_name).name
    return [direct, below] if below != direct else [direct]


def find_root(path: Path, file_names: Sequence[str], images: Path | None, images_needed: bool) -> Path:
    """The folder that the photographs of the annotations at `path` are relative to: `images`, or a folder near `path`.

    Raises AnnotationError if none of `file_names` is in it, unless images are not needed.
    """
    if images is not None:
        roots = [images]
    else:
        split = path.stem.rpartition("_")[2]  # instances_val2017.json
        bases = [path.parent, path.parent / "images", path.parent.parent, path.parent.parent / "images"]
        roots = [folder for base in bases for folder in (base, base / split, base / path.stem)]
    for root in roots:
        if any(place.is_file() for file_name in file_names for place in places_of(root, file_name)):
            return root
    if not images_needed:
        return roots[0]
    if images is not None:
        raise AnnotationError(f"{path}: its photographs, such as {file_names[0]}, are not in {images}")
    raise AnnotationError(
        f"{path}: its photographs, such as {file_names[0]}, are not found near it: say where they are"
    )


SegmentationKind = Literal["compressed", "uncompressed", "polygon"]
CATEGORY = "mask"  # the name of the only category of an export


def coco_format(segmentation: SegmentationKind = "compressed") -> Format:
    """Writes one file `instances.json`. Ids start at 1. Memory holds the masks of one image at a time.

    `segmentation` is the form of the masks: RLE with compressed or uncompressed counts, or polygons, which lose holes.
    """
    lost: Counter[str] = Counter()

    def encode(selection: Selection, images: Iterator[ExportImage]) -> Iterator[bytes]:
        categories = [{"id": 1, "name": CATEGORY, "supercategory": ""}]
        return json_object(
            {"info": {"description": "masks exported by maskmill"}, "licenses": [], "categories": categories},
            images=map(_image_entry, selection.images()),
            annotations=(entry for image in images for entry in _mask_entries(image, segmentation, lost)),
        )

    def files(selection: Selection) -> Iterator[ExportFile]:
        yield ExportFile("instances.json", len(selection), selection.images, partial(encode, selection))

    return Format("coco", files, {"segmentation": segmentation}, image_folder="images/", lost=lost)


def _image_entry(image: SelectedImage) -> Fields:
    return {"id": image.number, "file_name": image.name, "height": image.height, "width": image.width}


def _mask_entries(image: ExportImage, segmentation: SegmentationKind, lost: Counter[str]) -> Iterator[Fields]:
    masks = image.masks
    mode = "uncompressed_rle" if segmentation == "uncompressed" else "coco_rle"
    for row, fields in enumerate(masks.to_dicts(mode)):
        x, y, w, h = fields["bbox"]
        entry = fields | {
            "id": image.image.first_mask + row + 1,
            "image_id": image.image.number,
            "category_id": 1,
            "iscrowd": 0,
            # COCO counts pixels. The tables and SA-1B have one less.
            "bbox": [x, y, w + 1, h + 1] if fields["area"] else [x, y, 0, 0],
        }
        if segmentation == "polygon":
            outline = edge_outline(masks.rle_counts[row], masks.height, masks.width)
            lost[HOLES] += outline.holes
            entry["segmentation"] = [part.ravel().tolist() for part in outline.parts]
        yield entry
