"""Selects the annotated masks that are evaluated, and the images that are suited to measure edges."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from maskmill.annotations import AnnotatedImage
from maskmill.filters import rle

# Segments below this share of the image are annotated inconsistently, so they do not measure the model.
MIN_SHARE = 0.005


def select_segments(image: AnnotatedImage, min_share: float = MIN_SHARE) -> list[int]:
    """The indices of the masks larger than `min_share` of the image, of all annotators. Crowds are left out."""
    smallest = min_share * image.height * image.width
    return [
        k
        for k, counts in enumerate(image.rles)
        if not image.crowd_K[k] and rle.area(counts, image.height, image.width) > smallest
    ]


def segment_shares(image: AnnotatedImage, segments: Sequence[int]) -> NDArray[np.float64]:
    """The area (K,) of masks as shares of the image."""
    areas = [rle.area(image.rles[k], image.height, image.width) for k in segments]
    return np.array(areas, np.float64) / (image.height * image.width)


def covers_image(image: AnnotatedImage) -> bool:
    """Whether the masks of each annotator cover the image. Only then an edge without a mask counts as a false positive.

    Compares the sum of areas with the size of the image. An image without masks is not covered.
    """
    areas_K = np.array([rle.area(counts, image.height, image.width) for counts in image.rles], np.int64)
    totals_A = np.array([areas_K[image.annotator_K == annotator].sum() for annotator in np.unique(image.annotator_K)])
    return len(totals_A) > 0 and bool((totals_A == image.height * image.width).all()) and not image.crowd_K.any()
