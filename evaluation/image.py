"""Evaluates a model on one image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from maskmill.annotations import AnnotatedImage
from maskmill.evaluation.baselines import BASELINES
from maskmill.evaluation.boundaries import BoundaryCounts, count_matches, human_boundaries
from maskmill.evaluation.boxes import measure_boxes
from maskmill.evaluation.candidates import POINTS_PER_SIDE, find_candidates
from maskmill.evaluation.clicks import CLICKS, ClickScores, measure_clicks
from maskmill.evaluation.edges import edge_map
from maskmill.evaluation.proposals import LIMITS, Matches, match_proposals
from maskmill.evaluation.recall import RecallCurve, recall_curve
from maskmill.evaluation.segments import MIN_SHARE, covers_image, segment_shares, select_segments
from maskmill.model.network import Network
from maskmill.model.predictor import encode_image
from maskmill.pipeline.config import GeneratorConfig
from maskmill.pipeline.generator import MaskGenerator
from maskmill.pipeline.records import StepTimer

MEASURES = ("proposals", "clicks", "boxes", "recall", "baselines", "calibration", "edges")
MODEL = "model"  # the key of the model in ImageScores.recall


@dataclass(frozen=True, eq=False)
class ImageScores:
    """The scores of one image. None, or no entry, for measures that were not requested."""

    image_id: str
    shares_K: NDArray[np.float64]  # the areas of the evaluated segments, as shares of the image
    proposals: Matches | None
    clicks: ClickScores | None
    boxes_K: NDArray[np.float64] | None
    recall: Mapping[str, RecallCurve]  # keys: MODEL and the names of BASELINES
    edges: BoundaryCounts | None  # None also if the annotations do not cover the image


@dataclass(frozen=True)
class Settings:
    """Which measures are computed, and their parameters."""

    measures: tuple[str, ...] = MEASURES
    min_share: float = MIN_SHARE  # of the image's pixels: smaller segments are not measured
    proposal_points: int = POINTS_PER_SIDE  # points per side of the grid of clicks for object proposals


class ImageEvaluator:
    """Computes the measures of a model. Keeps no state between images."""

    def __init__(self, network: Network, config: GeneratorConfig, settings: Settings) -> None:
        """`config` configures the automatic masks for the recall measure."""
        self.network = network
        self.generator = MaskGenerator(network, config)
        self.settings = settings
        self.measures = frozenset(settings.measures)

    def measure(self, image: AnnotatedImage) -> ImageScores:
        """Raises AnnotationError if the image cannot be read."""
        pixels_HW3 = image.read_pixels()
        segments = select_segments(image, self.settings.min_share)
        proposals = clicks = boxes_K = None
        if "proposals" in self.measures:
            candidates = find_candidates(self.network, pixels_HW3, self.settings.proposal_points, LIMITS[-1])
            proposals = match_proposals(candidates.rles, image)
        if self.measures & {"clicks", "calibration", "boxes"}:
            encoded = encode_image(self.network, pixels_HW3)
            if self.measures & {"clicks", "calibration"}:
                last = CLICKS[-1] if "clicks" in self.measures else 1
                clicks = measure_clicks(encoded, image, segments, last)
            if "boxes" in self.measures:
                boxes_K = measure_boxes(encoded, image, segments)
        edges = None
        if "edges" in self.measures and covers_image(image):
            edges = count_matches(edge_map(self.network, pixels_HW3), human_boundaries(image))
        recall = self._recall(image, pixels_HW3, segments)
        return ImageScores(image.image_id, segment_shares(image, segments), proposals, clicks, boxes_K, recall, edges)

    def _recall(
        self, image: AnnotatedImage, pixels_HW3: NDArray[np.uint8], segments: list[int]
    ) -> dict[str, RecallCurve]:
        masks: dict[str, list[bytes]] = {}
        if "recall" in self.measures:
            generated = self.generator.generate(self.generator.prepare(pixels_HW3), StepTimer())
            best_first = np.argsort(-generated.predicted_iou, kind="stable")
            masks[MODEL] = [generated.rle_counts[i] for i in best_first]
        if "baselines" in self.measures:
            masks |= {name: baseline(pixels_HW3) for name, baseline in BASELINES.items()}
        wanted = [image.rles[k] for k in segments]
        return {name: recall_curve(counts, wanted, image.height, image.width) for name, counts in masks.items()}
