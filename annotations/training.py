"""Annotated images as the trainer takes them: label maps beside pixels, no larger than they need to be.

Shapes: H W image size, h w reduced size, A label maps.
"""

from __future__ import annotations

import logging
from collections import defaultdict
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
# Damaged in a row: then nobody would wait for the first that is sound.
_PATIENCE = 20

logger = logging.getLogger(__name__)


class TrainingImages:
    """Annotated images as a Dataset. Those that were read stay in memory, as long as there is room.

    An image without masks is passed over for the next one that has some, and so is, with a warning, one that is damaged
    or missing: it must not end a run of hours, nor stop it at the same step each time.
    """

    def __init__(
        self, images: AnnotatedImages, cache_bytes: int = CACHE_BYTES, longest_side: int = LONGEST_SIDE
    ) -> None:
        """At most `cache_bytes` are kept; photographs are reduced to `longest_side` pixels."""
        self._images, self._cache_bytes, self._longest_side = images, cache_bytes, longest_side
        self._kept = ImageCache(cache_bytes)

    @property
    def name(self) -> str:
        """What the log and the model's card call it."""
        return self._images.name

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int, /) -> LabelledImage:
        """TrainingDataError where no image has masks, or too many in a row are damaged."""
        damaged = 0
        for candidate in (*range(index, len(self)), *range(index)):
            try:
                if (image := self._labelled(candidate)) is not None:
                    return image
            except AnnotationError as error:
                damaged += 1
                if damaged == min(_PATIENCE, len(self)):
                    raise TrainingDataError(
                        f"{damaged} images in a row cannot be used, the last one: {error}"
                    ) from error
                logger.warning("%s: passed over", error)
        raise TrainingDataError(f"{self.name}: no image with masks in it")

    def _labelled(self, index: int) -> LabelledImage | None:
        image = self._kept.get(index)
        if image is None:
            image = to_labelled(self._images[index], self._longest_side)
            if image is not None:
                self._kept.add(index, image)
        return image

    def __reduce__(self) -> tuple[Any, ...]:
        # What was read stays behind.
        return TrainingImages, (self._images, self._cache_bytes, self._longest_side)


def to_labelled(image: AnnotatedImage, longest_side: int) -> LabelledImage | None:
    """The image, its longest side at most `longest_side`, with its masks in label maps; None where it has none.

    Each annotator's masks are layered on their own, the largest first, so that all the segments under a click are right
    answers, and an annotator who cut the image into segments keeps it to one map. Crowds are left out: nobody clicks
    on many things at once.
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
    """The pixel of the image under the centre of each pixel of the reduced one."""
    return ((np.arange(reduced) + 0.5) * length / reduced).astype(np.int64)
