import numpy as np
import pytest

from maskmill.pipeline.config import GeneratorConfig
from maskmill.pipeline.errors import ConfigError

GRID = np.array([[0.5, 0.5]])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"points_per_side": None}, "points_per_side or point_grids"),
        ({"point_grids": (GRID,)}, "points_per_side or point_grids"),
        ({"points_per_side": 0}, "points_per_side"),
        ({"points_per_side": 3, "crop_n_layers": 2, "crop_n_points_downscale_factor": 2}, "points_per_side"),
        ({"points_per_batch": 0}, "points_per_batch"),
        ({"pred_iou_thresh": -0.1}, "pred_iou_thresh"),
        ({"pred_iou_thresh": float("nan")}, "pred_iou_thresh"),
        ({"stability_score_thresh": 1.1}, "stability_score_thresh"),
        ({"stability_score_offset": -1.0}, "stability_score_offset"),
        ({"box_nms_thresh": 1.5}, "box_nms_thresh"),
        ({"crop_nms_thresh": -0.5}, "crop_nms_thresh"),
        ({"crop_n_layers": -1}, "crop_n_layers"),
        ({"crop_overlap_ratio": 1.0}, "crop_overlap_ratio"),
        ({"crop_n_points_downscale_factor": 0}, "crop_n_points_downscale_factor"),
        ({"min_mask_region_area": -1}, "min_mask_region_area"),
        ({"max_coverage": 95}, "max_coverage"),
        ({"points_per_side": None, "point_grids": (GRID,), "crop_n_layers": 1}, "number of point_grids"),
        ({"points_per_side": None, "point_grids": (np.zeros((0, 2)),)}, "shape"),
        ({"points_per_side": None, "point_grids": (np.zeros(2),)}, "shape"),
        ({"points_per_side": None, "point_grids": (GRID * 3,)}, "coordinate"),
    ],
)
def test_config_is_refused_when_an_argument_is_wrong(arguments, named):
    with pytest.raises(ConfigError, match=named):
        GeneratorConfig(**arguments)
