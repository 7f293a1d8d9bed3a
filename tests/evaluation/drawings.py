"""Annotated images drawn by hand, and a predictor that knows the answers."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from maskmill.annotations import AnnotatedImage
from maskmill.filters import rle
from maskmill.model.predictor import Prediction

Mask = NDArray[np.bool_]


def rectangle(height: int, width: int, rows: slice, columns: slice) -> Mask:
    """A mask (H, W) that is a rectangle."""
    mask_HW = np.zeros((height, width), np.bool_)
    mask_HW[rows, columns] = True
    return mask_HW


def annotated(
    masks: Sequence[Mask],
    annotators: Sequence[int] | None = None,
    crowds: Sequence[bool] | None = None,
    image_id: str = "drawn",
    pixels_HW3: NDArray[np.uint8] | None = None,
) -> AnnotatedImage:
    """At least one mask; black pixels and a single annotator unless told."""
    height, width = masks[0].shape
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((height, width, 3), np.uint8) if pixels_HW3 is None else pixels_HW3).save(buffer, "PNG")
    return AnnotatedImage(
        image_id=image_id,
        uri=f"{image_id}.png",
        height=height,
        width=width,
        rles=tuple(rle.encode(mask) for mask in masks),
        annotator_K=np.array(annotators or [0] * len(masks), np.int64),
        crowd_K=np.array(crowds or [False] * len(masks), np.bool_),
        fetch=buffer.getvalue,
    )


@dataclass
class ScriptedPredictor:
    """Answers with the masks it was given, call by call (the last for ever), and keeps what it was asked."""

    answers: Sequence[tuple[Sequence[Mask], Sequence[float]]]  # masks and predicted IoUs of each call
    asked: list[dict[str, Any]] = field(default_factory=list)

    def predict(
        self,
        points: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        box: ArrayLike | None = None,
        mask_input: ArrayLike | None = None,
        multimask: bool = True,
    ) -> Prediction:
        call = min(len(self.asked), len(self.answers) - 1)
        self.asked.append(
            {"points": points, "labels": labels, "box": box, "mask_input": mask_input, "multimask": multimask}
        )
        masks, predicted = self.answers[call]
        # Logits that say which answer they came with.
        logits = np.stack([np.full((2, 2), 10 * call + m, np.float32) for m in range(len(masks))])
        return Prediction(np.stack(masks), np.array(predicted, np.float32), logits)
