"""What a run is configured by: frozen dataclasses and named presets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class GeneratorConfig:
    """How masks are generated. Fields up to `min_mask_region_area` are the released generator's arguments.

    Source: `SamAutomaticMaskGenerator` of segment-anything; Kirillov et al. 2023, Appendix B.
    """

    points_per_side: int | None = 32
    points_per_batch: int = 64
    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95
    stability_score_offset: float = 1.0
    box_nms_thresh: float = 0.7
    crop_n_layers: int = 0
    crop_nms_thresh: float = 0.7
    crop_overlap_ratio: float = 512 / 1500
    crop_n_points_downscale_factor: int = 1
    # One (P, 2) array of points in [0, 1] per crop layer, instead of `points_per_side`.
    point_grids: tuple[NDArray[np.float64], ...] | None = None
    min_mask_region_area: int = 0
    # SA-1B also dropped masks that cover this share of the image or more. None keeps them.
    max_coverage: float | None = None
    # SA-1B dropped masks whose largest island is below `min_mask_region_area`; the released code keeps it.
    drop_small_masks: bool = False


PRESETS: dict[str, GeneratorConfig] = {
    "official": GeneratorConfig(),
    "sa1b": GeneratorConfig(
        crop_n_layers=2,
        crop_n_points_downscale_factor=2,
        min_mask_region_area=100,
        max_coverage=0.95,
        drop_small_masks=True,
    ),
    # Thresholds for the scores of the embedded model, which has seen far less than the published ones.
    "mini": GeneratorConfig(pred_iou_thresh=0.7, stability_score_thresh=0.85, max_coverage=0.95),
}
