"""Opens annotations: detects the format of a path."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from maskmill.annotations.coco import CocoInstances, coco_of, compact, is_coco
from maskmill.annotations.cvat import CVAT_NAME, CvatImages, open_cvat
from maskmill.annotations.json_files import read_json
from maskmill.annotations.label_maps import LabelMapFolder, open_label_maps
from maskmill.annotations.records import AnnotationError
from maskmill.annotations.runs import RunImages, open_run_images
from maskmill.annotations.sa1b import Sa1bFolder, is_sa1b
from maskmill.pipeline.ledger import RUN_KEY

KINDS = (
    "photographs ID.jpg with label maps ID.seg0.png, COCO instances (a .json file), SA-1B (sa_1.jpg with sa_1.json), "
    "CVAT for images (annotations.xml) or the output of a maskmill run"
)
_LOOKED_AT = 20  # files of a folder that are read to detect its format
# All that `open_annotations` opens.
Opened = CocoInstances | Sa1bFolder | LabelMapFolder | CvatImages | RunImages


def open_annotations(
    path: Path | str, images: Path | None = None, moved_to: str | None = None, images_needed: bool = True
) -> Opened:
    """Opens annotations in any format that maskmill reads. The format is detected:

    - a folder of photographs `ID.jpg` with one label map `ID.segK.png` per annotator (BSDS)
    - a file of COCO instances, or a folder with one such file
    - SA-1B: a folder of `sa_1.jpg` with `sa_1.json`, or one of these JSON files
    - a file of CVAT for images 1.1, or a folder with annotations.xml
    - the output of a maskmill run, on disk or s3://, which records where its images are

    `images` is the folder of the photographs, if they are not near the annotations. `moved_to` is the new place of the
    source of a run. With `images_needed` the photographs of COCO and CVAT must be there.

    Raises AnnotationError if the path holds none of these or no images. For a run, raises as `open_run_images` does.
    """
    if "://" in str(path) or (Path(path) / RUN_KEY).is_file():
        if images is not None:
            raise AnnotationError(f"{path}: a run knows where its images were: if they have moved, give --source")
        return open_run_images(str(path), moved_to)
    if moved_to is not None:
        raise AnnotationError(f"{path}: not the output of a run, and --source is only for runs: give --images")
    path = Path(path).absolute()
    images = images and images.absolute()
    if images is not None and not images.is_dir():
        raise AnnotationError(f"{images}: no such folder")
    if path.is_file():
        return _open_file(path, images, images_needed)
    if not path.is_dir():
        raise AnnotationError(f"{path}: no such file or folder; expected {KINDS}")
    if any(path.glob("*.seg*.png")):
        return open_label_maps(path, images)
    names = sorted(str(found.relative_to(path)) for found in path.rglob("*.json"))
    if not names and (path / CVAT_NAME).is_file():
        return open_cvat(path / CVAT_NAME, images, images_needed)
    if not names:
        raise AnnotationError(f"{path}: no annotations in this folder; expected {KINDS}")
    if _holds_sa1b([path / name for name in names[:_LOOKED_AT]]):
        return Sa1bFolder(path, images, tuple(names))
    if len(names) > 1:
        raise AnnotationError(f"{path}: holds several JSON files, none of SA-1B: name one, such as {path / names[0]}")
    return _open_file(path / names[0], images, images_needed)


def _holds_sa1b(paths: Sequence[Path]) -> bool:
    """Whether the first of these JSON files that is not damaged is of SA-1B. Raises AnnotationError if all are."""
    for path in paths[:-1]:
        with suppress(AnnotationError):
            return is_sa1b(read_json(path))
    return is_sa1b(read_json(paths[-1]))


def _open_file(path: Path, images: Path | None, images_needed: bool) -> CocoInstances | Sa1bFolder | CvatImages:
    if path.suffix.lower() == ".xml":
        return open_cvat(path, images, images_needed)
    if path.suffix.lower() != ".json":
        raise AnnotationError(f"{path}: not a .json or .xml file; expected {KINDS}")
    content = read_json(path, compact)
    if is_coco(content):
        return coco_of(content, path, images, images_needed)
    if is_sa1b(content):
        return Sa1bFolder(path.parent, images, (path.name,))
    found = f"its keys are {', '.join(content)[:100]}" if isinstance(content, dict) else "it holds no object"
    raise AnnotationError(
        f"{path}: neither COCO instances (images, annotations) nor SA-1B (image, annotations): {found}"
    )
