"""An annotated image: an image and its masks, in one form for all file formats.

Shapes: H W image size, K masks of one image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from maskmill.filters import rle
from maskmill.model.errors import MaskmillError
from maskmill.pipeline.config import DEFAULT_DECODING, DecodingConfig
from maskmill.pipeline.errors import ImageError, StorageError
from maskmill.pipeline.images import decode_image

# Name -> shape of the value of one mask. A point is in a list, as there.
MODEL_FIELDS: Mapping[str, tuple[int, ...]] = {
    "predicted_iou": (),
    "stability_score": (),
    "point_coords": (1, 2),  # XY
    "crop_box": (4,),  # XYWH
}


class AnnotationError(MaskmillError):
    """Annotations that cannot be read or do not fit their image."""


@dataclass(frozen=True, eq=False)
class AnnotatedImage:
    """An image and the K masks that people (or a model) drew on it. Masks are not empty; they may overlap."""

    image_id: str  # unique among its images
    uri: str  # where the image is, for messages
    height: int
    width: int
    rles: tuple[bytes, ...]  # COCO's compressed counts, as filters.rle encodes them
    annotator_K: NDArray[np.int64]  # number of the annotator of mask k; 0 for all if the format has one annotator
    crowd_K: NDArray[np.bool_]  # COCO's iscrowd: a region of many objects, not used as an answer to a prompt
    fetch: Callable[[], bytes]  # the image file; picklable, such as `path.read_bytes`
    decoding: DecodingConfig = DEFAULT_DECODING
    # What SA-1B records of masks because a model made them: MODEL_FIELDS, those that all masks of the image have.
    model_fields: Mapping[str, NDArray[np.float64]] = field(default_factory=dict[str, NDArray[np.float64]])

    def __post_init__(self) -> None:
        assert self.annotator_K.shape == self.crowd_K.shape == (len(self.rles),)

    def __len__(self) -> int:
        return len(self.rles)

    def read_pixels(self) -> NDArray[np.uint8]:
        """The image, upright RGB (H, W, 3). Raises AnnotationError if it is missing, damaged or of another size."""
        try:
            pixels_HW3 = decode_image(self.fetch(), self.decoding).pixels
        except OSError as error:
            raise AnnotationError(f"{self.uri}: {error.strerror or error}") from error
        except (ImageError, StorageError) as error:
            raise AnnotationError(f"{self.uri}: {error}") from error
        height, width = pixels_HW3.shape[:2]
        if (height, width) != (self.height, self.width):
            raise AnnotationError(
                f"{self.uri}: {width} x {height} pixels, but its annotations are for {self.width} x {self.height}"
            )
        return pixels_HW3

    def decode(self, k: int) -> NDArray[np.bool_]:
        """Mask k, (H, W)."""
        return rle.decode(self.rles[k], self.height, self.width)

    def decode_all(self) -> Iterator[NDArray[np.bool_]]:
        """The masks in order, decoded one at a time to save memory."""
        return (self.decode(k) for k in range(len(self.rles)))


def annotated_image(
    image_id: str,
    uri: str,
    size: tuple[int, int],
    rles: Sequence[bytes],
    fetch: Callable[[], bytes],
    annotators: Sequence[int] | None = None,
    crowds: Sequence[bool] | None = None,
    decoding: DecodingConfig = DEFAULT_DECODING,
    model_fields: Mapping[str, NDArray[np.float64]] | None = None,
    where: str | None = None,
) -> AnnotatedImage:
    """An image of `size` (H, W) with its masks. Empty masks are left out.

    Raises AnnotationError if one of `rles` is not a mask of this size. The message begins with `where`, or with `uri`.
    """
    height, width = size
    count = len(rles)
    area_K, _, faults = rle.measure(rles, np.full(count, height), np.full(count, width))
    for k, fault in faults.items():
        raise AnnotationError(f"{where or uri}: mask {k + 1} of {count}: the RLE {fault}")
    kept_K = np.flatnonzero(area_K).tolist()
    return AnnotatedImage(
        image_id,
        uri,
        height,
        width,
        tuple(rles[k] for k in kept_K),
        np.array(annotators or [0] * count, np.int64)[kept_K],
        np.array(crowds or [False] * count, np.bool_)[kept_K],
        fetch,
        decoding,
        {name: column[kept_K] for name, column in (model_fields or {}).items()},
    )


class AnnotatedImages(Protocol):
    """Annotated images by index, each read on access. Implementations are picklable."""

    @property
    def name(self) -> str:
        """The name of the file or folder, for messages, tables and model cards."""
        ...

    def __len__(self) -> int: ...

    def image_id(self, index: int) -> str:
        """Of an image, without reading its annotations."""
        ...

    def __getitem__(self, index: int, /) -> AnnotatedImage:
        """Raises AnnotationError if the annotations are damaged. The image file is read later, by `read_pixels`."""
        ...
