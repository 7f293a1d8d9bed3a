"""Measures the masks that a model predicts for the boxes of segments."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from maskmill.annotations import AnnotatedImage
from maskmill.evaluation.clicks import Predictor, iou
from maskmill.filters import rle


def measure_boxes(predictor: Predictor, image: AnnotatedImage, segments: Sequence[int]) -> NDArray[np.float64]:
    """The IoU (K,) of each segment with the single mask for its tight box. The box includes the last pixels."""
    ious = []
    for k in segments:
        x, y, w, h = rle.bbox(image.rles[k], image.height, image.width)
        answer = predictor.predict(box=[x, y, x + w + 1, y + h + 1], multimask=False)
        ious.append(iou(answer.masks[0], image.decode(k)))
    return np.array(ious, np.float64)
