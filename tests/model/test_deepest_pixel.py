import numpy as np

from maskmill.model.deepest_pixel import deepest_pixel


def test_deepest_pixel_is_farthest_from_the_border_of_the_region_and_of_the_image():
    region_HW = np.zeros((9, 20), dtype=np.bool_)
    region_HW[2:7, 3:8] = True
    region_HW[0:3, 14:20] = True  # wider, but cut off by the image's edges
    assert deepest_pixel(region_HW) == ((5, 4), 3.0)


def test_deepest_pixel_has_no_depth_when_the_region_is_empty():
    assert deepest_pixel(np.zeros((4, 5), dtype=np.bool_)) == ((0, 0), 0.0)
