"""Code shared by the JSON formats: reads files and the entry of one image with its masks, writes entries one by one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskmill.annotations.records import MODEL_FIELDS, AnnotatedImage, AnnotationError, annotated_image
from maskmill.annotations.segmentations import SegmentationError, to_counts
from maskmill.pipeline.config import DecodingConfig
from maskmill.pipeline.errors import one_line_cause

Fields = dict[str, Any]


def read_json(path: Path, object_hook: Callable[[Fields], Any] | None = None) -> Any:
    """The content of a JSON file; each object is replaced by the result of `object_hook` as soon as it is read.

    Raises AnnotationError if the file cannot be read or is not JSON.
    """
    try:
        return json.loads(path.read_bytes(), object_hook=object_hook)
    except OSError as error:
        raise AnnotationError(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"{path}: not JSON: {one_line_cause(error)}") from error


def image_size(image: Fields, where: str) -> tuple[int, int]:
    """The height and width in the entry of an image. Raises AnnotationError if they are missing or out of range."""
    height, width = image.get("height"), image.get("width")
    if type(height) is not int or type(width) is not int or height < 1 or width < 1:
        raise AnnotationError(f"{where}: no height and width in pixels")
    if height * width > DecodingConfig.max_image_pixels:
        raise AnnotationError(
            f"{where}: {width} x {height} pixels: the limit is {DecodingConfig.max_image_pixels} in all"
        )
    return height, width


def image_of_entries(
    image_id: str,
    uri: str,
    size: tuple[int, int],
    masks: Sequence[Fields],
    fetch: Callable[[], bytes],
    where: str,
) -> AnnotatedImage:
    """An image with the masks of its annotations. Masks without an area are left out.

    Raises AnnotationError if an annotation is damaged. The message begins with `where`.
    """
    rles: list[bytes] = []
    crowds: list[bool] = []
    kept: list[Fields] = []
    for mask in masks:
        try:
            counts = to_counts(mask.get("segmentation"), *size)
        except SegmentationError as error:
            raise AnnotationError(f"{where}: annotation {mask.get('id', len(rles))}: {error}") from error
        if counts is not None:
            rles.append(counts)
            crowds.append(bool(mask.get("iscrowd")))
            kept.append(mask)
    columns = _model_fields(kept, where)
    return annotated_image(image_id, uri, size, rles, fetch, crowds=crowds, model_fields=columns, where=where)


def _model_fields(masks: Sequence[Fields], where: str) -> dict[str, NDArray[np.float64]]:
    """The fields of SA-1B that all masks have. Raises AnnotationError if one is not of finite numbers."""
    columns: dict[str, NDArray[np.float64]] = {}
    for name, shape in MODEL_FIELDS.items():
        if masks and all(name in mask for mask in masks):
            try:
                columns[name] = np.array([mask[name] for mask in masks], np.float64)
            except (TypeError, ValueError) as error:
                raise AnnotationError(f"{where}: {name}: {one_line_cause(error)}") from error
            if columns[name].shape != (len(masks), *shape) or not np.isfinite(columns[name]).all():
                raise AnnotationError(f"{where}: {name}: not {max(1, math.prod(shape))} finite numbers per mask")
    return columns


def read_first(paths: Sequence[Path]) -> bytes:
    """The content of the first of these files that exists. Raises the OSError of the last one if none exists."""
    for path in paths[:-1]:
        if path.is_file():
            return path.read_bytes()
    return paths[-1].read_bytes()


def json_object(fields: Fields, **lists: Iterable[Any]) -> Iterator[bytes]:
    """A JSON object in chunks: its fields, then its lists, each entry on a line of its own."""
    yield json.dumps(fields).encode()[:-1]
    for number, (name, entries) in enumerate(lists.items()):
        yield b",\n" if fields or number else b""
        yield json.dumps(name).encode() + b": "
        yield from json_array(entries)
    yield b"}\n"


def json_array(entries: Iterable[Any]) -> Iterator[bytes]:
    """A JSON array in chunks, each entry on a line of its own."""
    separator = b"["
    for entry in entries:
        yield separator + b"\n" + json.dumps(entry, allow_nan=False).encode()
        separator = b","
    yield b"\n]" if separator == b"," else b"[]"
