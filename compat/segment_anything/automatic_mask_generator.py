"""`SamAutomaticMaskGenerator`: the masks of everything in an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from maskmill.compat.segment_anything.modeling import Sam
from maskmill.compat.segment_anything.predictor import SamPredictor
from maskmill.model.predictor import check_pixels
from maskmill.pipeline import prompts
from maskmill.pipeline.config import GeneratorConfig
from maskmill.pipeline.generator import MaskGenerator
from maskmill.pipeline.records import OutputMode, StepTimer


class SamAutomaticMaskGenerator:
    """Prompts a model with a grid of points and keeps the masks that pass the filters.

    The arguments are also attributes, which can be changed between images. `pipeline.config.GeneratorConfig` explains
    them. Raises AssertionError unless exactly one of `points_per_side` and `point_grids` is given and `output_mode` is
    binary_mask, uncompressed_rle or coco_rle.
    """

    def __init__(
        self,
        model: Sam,
        points_per_side: int | None = 32,
        points_per_batch: int = 64,
        pred_iou_thresh: float = 0.88,
        stability_score_thresh: float = 0.95,
        stability_score_offset: float = 1.0,
        box_nms_thresh: float = 0.7,
        crop_n_layers: int = 0,
        crop_nms_thresh: float = 0.7,
        crop_overlap_ratio: float = 512 / 1500,
        crop_n_points_downscale_factor: int = 1,
        point_grids: Sequence[NDArray[np.float64]] | None = None,
        min_mask_region_area: int = 0,
        output_mode: OutputMode = "binary_mask",
    ) -> None:
        if output_mode not in get_args(OutputMode):
            raise AssertionError(f"Unknown output_mode {output_mode}.")
        if (points_per_side is None) == (point_grids is None):
            raise AssertionError("Exactly one of points_per_side or point_grid must be provided.")
        if point_grids is None:
            config = GeneratorConfig(
                points_per_side=points_per_side,
                crop_n_layers=crop_n_layers,
                crop_n_points_downscale_factor=crop_n_points_downscale_factor,
            )
            point_grids = prompts.point_grids(config)
        self.predictor = SamPredictor(model)
        self.point_grids = point_grids
        self.points_per_batch = points_per_batch
        self.pred_iou_thresh = pred_iou_thresh
        self.stability_score_thresh = stability_score_thresh
        self.stability_score_offset = stability_score_offset
        self.box_nms_thresh = box_nms_thresh
        self.crop_n_layers = crop_n_layers
        self.crop_nms_thresh = crop_nms_thresh
        self.crop_overlap_ratio = crop_overlap_ratio
        self.crop_n_points_downscale_factor = crop_n_points_downscale_factor
        self.min_mask_region_area = min_mask_region_area
        self.output_mode: OutputMode = output_mode

    def generate(self, image: NDArray[np.uint8]) -> list[dict[str, Any]]:
        """Returns one dictionary per mask of an image (H, W, 3) uint8: see `ImageMasks.to_dicts`.

        Raises PromptError if the image is not such an array, ConfigError if an argument is out of range.
        """
        check_pixels(image)
        config = GeneratorConfig(
            points_per_side=None,
            points_per_batch=self.points_per_batch,
            pred_iou_thresh=self.pred_iou_thresh,
            stability_score_thresh=self.stability_score_thresh,
            stability_score_offset=self.stability_score_offset,
            box_nms_thresh=self.box_nms_thresh,
            crop_n_layers=self.crop_n_layers,
            crop_nms_thresh=self.crop_nms_thresh,
            crop_overlap_ratio=self.crop_overlap_ratio,
            crop_n_points_downscale_factor=self.crop_n_points_downscale_factor,
            point_grids=tuple(self.point_grids[: self.crop_n_layers + 1]),
            min_mask_region_area=self.min_mask_region_area,
        )
        generator = MaskGenerator(self.predictor.model.for_inference(), config)
        return generator.generate(generator.prepare(image), StepTimer()).to_dicts(self.output_mode)
