"""Which of an image's annotated masks prompts and recall are measured on."""

from __future__ import annotations

from annotations import AnnotatedImage
from filters import rle

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
