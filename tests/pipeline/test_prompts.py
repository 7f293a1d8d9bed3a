import numpy as np
import pytest

from maskmill.pipeline.config import PRESETS, GeneratorConfig
from maskmill.pipeline.prompts import crop_boxes, plan_views, point_grids, square_grid


def test_grid_points_are_cell_centres_row_by_row():
    assert square_grid(2).tolist() == [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]


def test_grids_shrink_per_layer():
    config = GeneratorConfig(points_per_side=9, crop_n_layers=2, crop_n_points_downscale_factor=2)
    assert [len(grid) for grid in point_grids(config)] == [81, 16, 4]


def test_explicit_grids_replace_the_square_ones():
    grids = (np.array([[0.5, 0.25]]), np.array([[0.0, 1.0], [1.0, 0.0]]))
    config = GeneratorConfig(points_per_side=None, point_grids=grids, crop_n_layers=1)
    views = plan_views(200, 100, config)
    assert views[0].points_P2.tolist() == [[50, 50]]
    assert views[1].points_P2.tolist() == [[0, views[1].height], [views[1].width, 0]]


def test_layer_0_is_the_whole_image():
    assert crop_boxes(480, 640, 0, 512 / 1500) == [(0, 0, 640, 480)]


def test_layer_1_overlaps_by_the_ratio_of_the_short_side():
    # 512 / 1500 of 480 px are 163 px: crops of (163 + 640) / 2 and (163 + 480) / 2 px, column by column.
    assert crop_boxes(480, 640, 1, 512 / 1500) == [
        (0, 0, 402, 322),
        (0, 159, 402, 480),
        (239, 0, 640, 322),
        (239, 159, 640, 480),
    ]


def test_overlap_halves_in_layer_2():
    boxes = crop_boxes(1500, 1500, 2, 512 / 1500)
    assert len(boxes) == 16
    assert boxes[0][2] - boxes[4][0] == 256


def test_crops_without_a_pixel_are_left_out_when_image_is_tiny():
    assert crop_boxes(1, 1, 2, 512 / 1500) == [(0, 0, 1, 1)]
    assert crop_boxes(1, 3, 1, 512 / 1500) == [(0, 0, 2, 1), (2, 0, 3, 1)]


def test_views_of_sa1b_are_21_with_3072_points():
    views = plan_views(1500, 2250, PRESETS["sa1b"])
    assert len(views) == 21
    assert sum(len(view.points_P2) for view in views) == 3072


@pytest.mark.parametrize(("height", "width"), [(480, 640), (427, 640), (30, 2000), (1411, 1411), (97, 101)])
def test_views_are_the_published_ones(height, width):
    # The stand-in for torchvision lets segment_anything import.
    from testing import oracles

    config = GeneratorConfig(points_per_side=12, crop_n_layers=2, crop_n_points_downscale_factor=2)
    views = plan_views(height, width, config)
    boxes, points = oracles.published_views(height, width, config)
    assert [list(view.crop_box) for view in views] == boxes
    for view, points_P2 in zip(views, points, strict=True):
        np.testing.assert_allclose(view.points_P2, points_P2, rtol=1e-14)
