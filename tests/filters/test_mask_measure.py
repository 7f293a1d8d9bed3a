"""Measures and run lengths equal those of the reference, which stores every pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maskmill.filters import mask_measure, rle
from maskmill.filters.boxes import masks_to_boxes
from maskmill.filters.upsampling import linear_taps, plan_upsampling
from maskmill.model.config import NetworkConfig
from maskmill.model.frame import Frame
from maskmill.pipeline.upsampling import crop_upsampling
from testing.scores import count_pixels, stability_score


@pytest.mark.parametrize("size", [1, 2, 3, 64, 333, 1024])
@pytest.mark.parametrize("new_size", [1, 2, 5, 256, 427, 1500, 2250])
def test_taps_are_those_of_torch(size, new_size):
    x = torch.randn(size)
    taps = linear_taps(size, new_size)
    theirs = F.interpolate(x[None, None], new_size, mode="linear")[0, 0].numpy()
    far = (x.numpy()[taps.far] * taps.far_weight).astype(np.float64)
    ours = (x.numpy()[taps.near].astype(np.float64) * taps.near_weight + far).astype(
        np.float32
    )  # as a fused multiply-add
    assert np.array_equal(ours, theirs)


# Mask side, input side, height and width of the crop: larger and smaller than the input, long and thin. Where height
# and width are together 128 or less torch adds in another order, and the last bits differ.
SIZES = [
    (64, 256, 300, 211),
    (64, 256, 256, 256),
    (128, 512, 427, 640),
    (256, 1024, 100, 37),
    (256, 1024, 700, 1050),
    (64, 256, 1, 300),
    (64, 256, 1100, 3),
]


def _logits(side: int) -> Tensor:
    """Masks with smooth borders, of noise, empty, full, of one logit, with a hole, and at the thresholds themselves."""
    torch.manual_seed(side)
    smooth = F.interpolate(4 * torch.randn(6, 1, 7, 7), (side, side), mode="bicubic")[:, 0]
    noise = torch.randn(2, side, side)
    one = torch.full((1, side, side), -9.0)
    one[0, 2, 1] = 9
    hole = torch.full((1, side, side), 9.0)
    hole[0, 1:3, 1:2] = -9
    steps = torch.randint(-1, 2, (2, side, side)).float()
    empty_and_full = torch.tensor([-5.0, 5.0])[:, None, None].expand(2, side, side)
    return torch.cat([smooth, noise, one, hole, steps, empty_and_full])


@pytest.mark.parametrize("offset", [1.0, 0.0, 2.5])
@pytest.mark.parametrize(("mask_size", "image_size", "height", "width"), SIZES)
def test_measures_are_those_of_all_pixels(mask_size, image_size, height, width, offset):
    logits_Nhw = _logits(mask_size)
    upsampling = plan_upsampling(mask_size, image_size, Frame(height, width, image_size).resized, height, width)
    measures = mask_measure.measure(logits_Nhw, upsampling, offset)
    logits_NHW = Frame(height, width, image_size).to_image_logits(logits_Nhw)
    torch.testing.assert_close(
        measures.stability_score, stability_score(logits_NHW, offset), rtol=0, atol=0, equal_nan=True
    )
    assert torch.equal(measures.area, count_pixels(logits_NHW > 0))
    assert torch.equal(measures.boxes, masks_to_boxes(logits_NHW > 0))


@pytest.mark.parametrize("margin", [0.5, 2.0])
@pytest.mark.parametrize(("mask_size", "image_size", "height", "width"), SIZES)
def test_boxes_are_those_of_the_largest_and_the_smallest_mask_that_there_may_be(
    mask_size, image_size, height, width, margin
):
    logits_Nhw = _logits(mask_size)
    upsampling = plan_upsampling(mask_size, image_size, Frame(height, width, image_size).resized, height, width)
    measures, without = (mask_measure.measure(logits_Nhw, upsampling, 1.0, m) for m in (margin, 0))
    logits_NHW = Frame(height, width, image_size).to_image_logits(logits_Nhw)
    assert torch.equal(measures.boxes, masks_to_boxes(logits_NHW > -margin))
    inner_N = (logits_NHW > margin).any(2).any(1)
    assert torch.equal(measures.inner_boxes[inner_N], masks_to_boxes(logits_NHW[inner_N] > margin))
    assert (measures.inner_boxes[~inner_N, 0] > measures.inner_boxes[~inner_N, 2]).all()
    assert torch.equal(measures.area, without.area)
    torch.testing.assert_close(measures.stability_score, without.stability_score, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("around", [(0, 0, 0, 0), (3, 0, 4, 0), (0, 5, 0, 6), (2, 1, 0, 7)])
@pytest.mark.parametrize(("mask_size", "image_size", "height", "width"), SIZES)
def test_run_lengths_are_those_of_all_pixels(mask_size, image_size, height, width, around):
    left, top, right, bottom = around
    logits_Nhw = _logits(mask_size)
    upsampling = plan_upsampling(mask_size, image_size, Frame(height, width, image_size).resized, height, width)
    image = (top + height + bottom, left + width + right)
    counts = mask_measure.encode(logits_Nhw, upsampling, (left, top), *image)
    masks_NHW = Frame(height, width, image_size).to_image_logits(logits_Nhw) > 0
    masks_NHW = F.pad(masks_NHW, (left, right, top, bottom)).numpy()
    assert counts == [rle.encode(mask_HW) for mask_HW in masks_NHW]


@pytest.mark.parametrize("threads", [1, 3])
def test_there_may_be_fewer_masks_than_threads(threads):
    upsampling = plan_upsampling(64, 256, (256, 256), 90, 90)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for count in (0, 1, 2, 14):
            logits_Nhw = _logits(64)[:count]
            measures = mask_measure.measure(logits_Nhw, upsampling, 1.0)
            assert measures.boxes.shape == (count, 4)
            assert torch.equal(measures.area, count_pixels(Frame(90, 90, 256).to_image_logits(logits_Nhw) > 0))
            assert len(mask_measure.encode(logits_Nhw, upsampling, (0, 0), 90, 90)) == count
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("height", "width"), [(300, 211), (64, 64), (90, 41), (1, 300)])
def test_measures_are_those_of_all_pixels_when_the_image_was_stretched_to_the_input(height, width):
    config = NetworkConfig("square", "sam2", image_size=256, square_input=True)
    logits_Nhw = _logits(config.mask_size)
    logits_NHW = config.frame(height, width).to_image_logits(logits_Nhw)
    upsampling = crop_upsampling(config, height, width)
    measures = mask_measure.measure(logits_Nhw, upsampling, 1.0)
    torch.testing.assert_close(
        measures.stability_score, stability_score(logits_NHW, 1.0), rtol=0, atol=0, equal_nan=True
    )
    assert torch.equal(measures.area, count_pixels(logits_NHW > 0))
    assert torch.equal(measures.boxes, masks_to_boxes(logits_NHW > 0))
    counts = mask_measure.encode(logits_Nhw, upsampling, (0, 0), height, width)
    assert counts == [rle.encode(mask_HW) for mask_HW in (logits_NHW > 0).numpy()]
