"""Measures segment recall and the number of masks for a grid of thresholds, to choose the thresholds of a preset.

    python -m benchmarks.thresholds --data bsds500-val [--images 30] [--checkpoint model.safetensors]

The masks of each image are generated once, without thresholds and NMS. All combinations of thresholds and NMS are then
applied to them. For each number of masks per image, the combinations with the highest recall are printed.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from maskmill.annotations import open_annotations
from maskmill.evaluation import overlap
from maskmill.evaluation.segments import select_segments
from maskmill.filters.boxes import xywh_to_xyxy
from maskmill.filters.nms import nms
from maskmill.model.checkpoint import load_model
from maskmill.model.optimize import optimize
from maskmill.pipeline.config import PRESETS
from maskmill.pipeline.generator import MaskGenerator
from maskmill.pipeline.records import ImageMasks, StepTimer

PREDICTED_IOU = np.arange(0.1, 0.91, 0.1)
STABILITY = np.arange(0.0, 0.96, 0.1)
NMS = (0.4, 0.5, 0.6, 0.7, 0.8)
MASKS_PER_IMAGE = (30, 60, 100)
SHOWN = 5


@dataclass(frozen=True, eq=False)
class Candidates:
    """All masks of an image, and their IoU with each of its segments."""

    masks: ImageMasks
    iou_NK: NDArray[np.float64]

    def best(self, predicted_iou: float, stability: float, nms_threshold: float) -> tuple[NDArray[np.float64], int]:
        """Applies thresholds and NMS. Returns the highest IoU for each segment and the number of remaining masks."""
        masks = self.masks
        passing = np.flatnonzero((masks.predicted_iou > predicted_iou) & (masks.stability_score >= stability))
        boxes_N4 = xywh_to_xyxy(torch.from_numpy(masks.boxes[passing]))
        kept = nms(boxes_N4, torch.from_numpy(masks.predicted_iou[passing]), nms_threshold)
        rows = passing[kept.numpy()]
        return self.iou_NK[rows].max(axis=0, initial=0.0), len(rows)


def main() -> None:
    """Generates masks, evaluates all combinations of thresholds and prints the best ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="annotated images, as for `maskmill evaluate`")
    parser.add_argument("--images", type=int, default=30, help="the first so many")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--checkpoint", type=Path)
    arguments = parser.parse_args()

    network = optimize(load_model(arguments.model, arguments.checkpoint).network, "exact", "cpu")
    config = replace(
        PRESETS[network.config.default_preset], pred_iou_thresh=0, stability_score_thresh=0, box_nms_thresh=1.0
    )
    generator = MaskGenerator(network, config)
    annotated = open_annotations(arguments.data)
    images = []
    for index in range(min(arguments.images, len(annotated))):
        image = annotated[index]
        masks = generator.generate(generator.prepare(image.read_pixels()), StepTimer())
        segments = [image.rles[k] for k in select_segments(image)]
        images.append(Candidates(masks, overlap.iou(masks.rle_counts, segments, image.height, image.width)))
        print(f"{index + 1}: {len(masks.area)} masks, {len(segments)} segments", flush=True)

    everything = np.concatenate([image.iou_NK.max(axis=0) for image in images]).mean()
    print(f"all masks together: recall {everything:.3f}")
    rows = []
    for thresholds in product(PREDICTED_IOU, STABILITY, NMS):
        best, counts = zip(*(image.best(*thresholds) for image in images), strict=True)
        rows.append((float(np.concatenate(best).mean()), float(np.mean(counts)), max(counts), thresholds))
    for limit in MASKS_PER_IMAGE:
        print(f"at most {limit} masks per image on average:")
        for recall, mean, most, thresholds in sorted((row for row in rows if row[1] <= limit), reverse=True)[:SHOWN]:
            predicted_iou, stability, nms_threshold = thresholds
            print(
                f"  recall {recall:.3f}, {mean:.0f} masks ({most} at most): "
                f"predicted IoU {predicted_iou:.2f}, stability {stability:.2f}, NMS {nms_threshold:.1f}"
            )


if __name__ == "__main__":
    main()
