"""How good the masks are that the boxes of segments give."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from maskmill.annotations import AnnotatedImage
from maskmill.evaluation.clicks import Predictor, iou
from maskmill.filters import rle


def measure_boxes(predictor: Predictor, image: AnnotatedImage, segments: Sequence[int]) -> NDArray[np.float64]:
    """IoUs (K,) of the segments with the single mask for the tight box around each, which includes its last pixels."""
    ious = []
    for k in segments:
        x, y, w, h = rle.bbox(image.rles[k], image.height, image.width)
        answer = predictor.predict(box=[x, y, x + w + 1, y + h + 1], multimask=False)
        ious.append(iou(answer.masks[0], image.decode(k)))
    return np.array(ious, np.float64)
