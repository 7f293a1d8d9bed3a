"""Opens annotations: detects the format of a path."""

from __future__ import annotations

from pathlib import Path

from maskmill.annotations.coco import coco_of, is_coco
from maskmill.annotations.json_files import read_json
from maskmill.annotations.label_maps import open_label_maps
from maskmill.annotations.records import AnnotatedImages, AnnotationError
from maskmill.annotations.runs import open_run_images
from maskmill.annotations.sa1b import Sa1bFolder, is_sa1b
from maskmill.pipeline.ledger import RUN_KEY

KINDS = (
    "photographs ID.jpg with label maps ID.seg0.png, COCO instances (a .json file), SA-1B (sa_1.jpg with sa_1.json) "
    "or the output of a maskmill run"
)


def open_annotations(path: Path | str, images: Path | None = None, moved_to: str | None = None) -> AnnotatedImages:
    """Opens annotations in any format that maskmill reads. The format is detected:

    - a folder of photographs `ID.jpg` with one label map `ID.segK.png` per annotator (BSDS)
    - a file of COCO instances, or a folder with one such file
    - SA-1B: a folder of `sa_1.jpg` with `sa_1.json`, or one of these JSON files
    - the output of a maskmill run, on disk or s3://, which records where its images are

    `images` is the folder of the photographs, if they are not near the annotations. `moved_to` is the new place of the
    source of a run.

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
        return _open_json(path, images)
    if not path.is_dir():
        raise AnnotationError(f"{path}: no such file or folder; expected {KINDS}")
    if any(path.glob("*.seg*.png")):
        return open_label_maps(path, images)
    names = sorted(str(found.relative_to(path)) for found in path.rglob("*.json"))
    if not names:
        raise AnnotationError(f"{path}: no annotations in this folder; expected {KINDS}")
    if is_sa1b(read_json(path / names[0])):
        return Sa1bFolder(path, images, tuple(names))
    if len(names) > 1:
        raise AnnotationError(f"{path}: holds several JSON files, none of SA-1B: name one, such as {path / names[0]}")
    return _open_json(path / names[0], images)


def _open_json(path: Path, images: Path | None) -> AnnotatedImages:
    if path.suffix.lower() != ".json":
        raise AnnotationError(f"{path}: not a .json file; expected {KINDS}")
    content = read_json(path)
    if is_coco(content):
        return coco_of(content, path, images)
    if is_sa1b(content):
        return Sa1bFolder(path.parent, images, (path.name,))
    found = f"its keys are {', '.join(content)[:100]}" if isinstance(content, dict) else "it holds no object"
    raise AnnotationError(
        f"{path}: neither COCO instances (images, annotations) nor SA-1B (image, annotations): {found}"
    )
