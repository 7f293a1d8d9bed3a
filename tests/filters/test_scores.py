import pytest
import torch

from testing.scores import count_pixels, stability_score


def test_stability_score_is_the_ratio_of_pixels_above_both_thresholds():
    # Above +1: two of the four that are above -1.
    logits_1HW = torch.tensor([[[1.5, 3.0, 1.0], [-0.5, -1.0, -7.0]]])
    assert stability_score(logits_1HW, offset=1.0).tolist() == [2 / 4]


def test_stability_score_is_nan_when_mask_is_empty_at_both_thresholds():
    score_N = stability_score(torch.tensor([[[-5.0]], [[5.0]]]), offset=1.0)
    assert score_N.isnan().tolist() == [True, False]


def test_stability_score_is_right_when_image_is_wider_than_an_int16():
    logits_1HW = torch.ones(1, 2, 40_000)
    logits_1HW[0, 0] = 9.0
    assert stability_score(logits_1HW, offset=2.0).item() == pytest.approx(0.5)


def test_count_pixels_per_mask():
    masks_NHW = torch.zeros(2, 3, 4, dtype=torch.bool)
    masks_NHW[1, :2, :3] = True
    assert count_pixels(masks_NHW).tolist() == [0, 6]
