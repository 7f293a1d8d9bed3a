"""Converts annotated images to training images: pixels and label maps, reduced to the input size of the models.

Shapes: H W image size, h w reduced size, A label maps.
"""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskmill.annotations.layers import layer_masks
from maskmill.annotations.records import AnnotatedImage, AnnotatedImages, AnnotationError
from maskmill.filters import rle
from maskmill.model.frame import Frame
from maskmill.model.training.data import ImageCache, LabelledImage, TrainingDataError

# The largest input of any model.
LONGEST_SIDE = 1024
CACHE_BYTES = 2**30
# After this many damaged images in a row, reading gives up.
_MAX_DAMAGED = 20

logger = logging.getLogger(__name__)


class TrainingImages:
    """Annotated images as a Dataset. Images that were read stay in memory, up to a number of bytes.

    In place of an image without masks, the next one with masks is returned. The same holds, with a warning, for an
    image that is damaged or missing: one bad file must not end a training run of hours.
    """

    def __init__(
        self,
        images: AnnotatedImages,
        cache_bytes: int = CACHE_BYTES,
        longest_side: int = LONGEST_SIDE,
        chosen: Sequence[int] | None = None,
    ) -> None:
        """Keeps at most `cache_bytes` in memory. Reduces photographs to `longest_side` pixels.

        `chosen` are the indices of the images to use; None for all.
        """
        self._images, self._cache_bytes, self._longest_side = images, cache_bytes, longest_side
        self._chosen = range(len(images)) if chosen is None else chosen
        self._kept = ImageCache(cache_bytes)

    @property
    def name(self) -> str:
        """The name of the annotations in the log and in the model card."""
        return self._images.name

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int, /) -> LabelledImage:
        """Raises TrainingDataError if no image has masks, or too many images in a row are damaged."""
        damaged = 0
        for candidate in (*range(index, len(self)), *range(index)):
            try:
                if (image := self._labelled(candidate)) is not None:
                    return image
            except AnnotationError as error:
                damaged += 1
                if damaged == min(_MAX_DAMAGED, len(self)):
                    raise TrainingDataError(
                        f"{damaged} images in a row cannot be used, the last one: {error}"
                    ) from error
                logger.warning("%s: skipped", error)
        raise TrainingDataError(f"{self.name}: no image with masks in it")

    def _labelled(self, index: int) -> LabelledImage | None:
        image = self._kept.get(index)
        if image is None:
            image = to_labelled(self._images[self._chosen[index]], self._longest_side)
            if image is not None:
                self._kept.add(index, image)
        return image

    def __reduce__(self) -> tuple[Any, ...]:
        # The copy starts with an empty cache.
        return TrainingImages, (self._images, self._cache_bytes, self._longest_side, self._chosen)


def split_off(images: AnnotatedImages) -> tuple[list[int], list[int]]:
    """The indices of the images to train on, and of the tenth to validate on, chosen by the hash of the image id."""
    parts: tuple[list[int], list[int]] = ([], [])
    for index in range(len(images)):
        digest = hashlib.sha256(images.image_id(index).encode()).digest()
        parts[digest[0] % 10 == 0].append(index)
    return parts


def to_labelled(image: AnnotatedImage, longest_side: int) -> LabelledImage | None:
    """The image with its masks as label maps, its longest side at most `longest_side` pixels. None without masks.

    The masks of each annotator get label maps of their own, the largest mask first. So every segment under a click is a
    right answer, and segments that do not overlap need one map. Crowds are left out: a click asks for one object.
    """
    areas = [rle.area(counts, image.height, image.width) for counts in image.rles]
    by_annotator: defaultdict[int, dict[bytes, int]] = defaultdict(dict)  # equal masks once
    for k in sorted(range(len(image)), key=lambda k: -areas[k]):
        if not image.crowd_K[k]:
            by_annotator[int(image.annotator_K[k])].setdefault(image.rles[k], k)
    if not by_annotator:
        return None
    frame = Frame(image.height, image.width, min(longest_side, max(image.height, image.width)))
    height, width = frame.resized
    rows, columns = _centres(image.height, height)[:, None], _centres(image.width, width)
    maps = [
        layer_masks((image.decode(k)[rows, columns] for k in masks.values()), height, width)
        for _, masks in sorted(by_annotator.items())
    ]
    maps_Ahw = np.concatenate(maps)
    pixels_HW3 = image.read_pixels()
    if (height, width) != (image.height, image.width):
        pixels_HW3 = frame.resize(pixels_HW3).numpy()
    return LabelledImage(pixels_HW3, maps_Ahw) if len(maps_Ahw) else None


def _centres(length: int, reduced: int) -> NDArray[np.int64]:
    """The pixel of the original that is under the centre of each pixel of the reduced image."""
    return ((np.arange(reduced) + 0.5) * length / reduced).astype(np.int64)
