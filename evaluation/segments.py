"""Which of an image's annotated masks prompts and recall are measured on, and whether they tell its boundaries."""

from __future__ import annotations

import numpy as np

from maskmill.annotations import AnnotatedImage
from maskmill.filters import rle

# Smaller segments than this share of the image say more about the annotator's patience than about the model.
MIN_SHARE = 0.005


def select_segments(image: AnnotatedImage, min_share: float = MIN_SHARE) -> list[int]:
    """The indices of the masks over `min_share` of the image's pixels, whoever drew them; no crowds."""
    smallest = min_share * image.height * image.width
    return [
        k
        for k, counts in enumerate(image.rles)
        if not image.crowd_K[k] and rle.area(counts, image.height, image.width) > smallest
    ]


def covers_image(image: AnnotatedImage) -> bool:
    """Whether each annotator's masks are all of the image: only then does an edge that no mask has not exist for them.

    Goes by the sum of their areas; an image without masks is not covered.
    """
    areas_K = np.array([rle.area(counts, image.height, image.width) for counts in image.rles], np.int64)
    totals_A = np.array([areas_K[image.annotator_K == annotator].sum() for annotator in np.unique(image.annotator_K)])
    return len(totals_A) > 0 and bool((totals_A == image.height * image.width).all()) and not image.crowd_K.any()
