"""Writes WebDataset: tars in which the files of a sample have the same name and different extensions.

Source: https://github.com/webdataset/webdataset
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator

from PIL import Image

from maskmill.annotations.export import ExportFile, ExportImage, Format, file_per_images
from maskmill.annotations.sa1b import sa1b_fields
from maskmill.annotations.selection import Selection
from maskmill.pipeline.sources import is_image


def webdataset_format(images_per_tar: int = 1000) -> Format:
    """Writes tars with two files per image: `000000012.jpg`, the image file, and `000000012.json`, its masks.

    The JSON is that of SA-1B, and `image.file_name` is the image_id. The number is the `image.image_id` in the JSON:
    a reader takes everything before the first dot of a file name as the key of a sample, and image_ids have dots.
    """

    def files(selection: Selection) -> Iterator[ExportFile]:
        return file_per_images(selection, images_per_tar, lambda number, _: f"{number:06d}.tar", _encode)

    return Format("webdataset", files, {"images_per_file": images_per_tar}, images_inside=True)


def _encode(images: Iterator[ExportImage]) -> Iterator[bytes]:
    for image in images:
        name = f"{image.image.number:09d}"
        if image.data is not None:
            yield from _member(f"{name}.{_extension(image.image.name, image.data)}", image.data)
        fields = sa1b_fields(image)
        fields["image"]["file_name"] = image.image.image_id
        yield from _member(f"{name}.json", json.dumps(fields, allow_nan=False).encode())
    yield bytes(2 * tarfile.BLOCKSIZE)


def _member(name: str, data: bytes) -> Iterator[bytes]:
    member = tarfile.TarInfo(name)  # modified at 0, so that equal images give equal bytes
    member.size = len(data)
    yield member.tobuf(tarfile.USTAR_FORMAT)
    yield data
    yield bytes(-len(data) % tarfile.BLOCKSIZE)


def _extension(name: str, data: bytes) -> str:
    """Of an image file in lower case. By its content if the name has none; "img" if that is unknown too."""
    if is_image(name):
        return name.rpartition(".")[2].lower()
    try:
        with Image.open(io.BytesIO(data)) as image:
            return (image.format or "img").lower()
    except (OSError, ValueError):
        return "img"
