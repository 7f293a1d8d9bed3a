"""Losses on cases that can be worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from maskmill.model.training.losses import (
    OFFSETS,
    affinity_loss,
    best_iou,
    mask_costs,
    matched_loss,
    neighbour_loss,
    same_segment,
    same_segment_cells,
)


def _half(left: bool) -> Tensor:
    mask_44 = torch.zeros(4, 4)
    mask_44[:, :2] = 1
    return mask_44 if left else 1 - mask_44


def test_mask_costs_are_nothing_when_masks_are_right_and_sure():
    answer = _half(True)[None, None]
    costs = mask_costs(40 * (2 * answer - 1), answer)
    assert costs.loss_NMJ.item() == pytest.approx(0, abs=1e-5)
    assert costs.iou_NMJ.item() == 1


def test_mask_costs_when_the_mask_knows_nothing():
    answer = _half(True)[None, None]
    # BCE is ln 2; dice has 8 * 0.5 in common of 16 * 0.5 + 8, each plus 1.
    costs = mask_costs(torch.zeros(1, 1, 4, 4), answer)
    assert costs.loss_NMJ.item() == pytest.approx(2 * math.log(2) + 1 - 9 / 17, abs=1e-5)
    assert costs.iou_NMJ.item() == 0


def test_mask_costs_compare_every_mask_with_every_answer():
    answers = torch.stack([_half(True), _half(False), torch.ones(4, 4)])[None]
    masks = torch.stack([_half(True), torch.ones(4, 4)])[None]
    assert mask_costs(20 * (masks - 0.5), answers).iou_NMJ.tolist() == [[[1.0, 0.0, 0.5], [0.5, 0.5, 1.0]]]


def test_matched_loss_gives_each_answer_a_mask_of_its_own():
    # Mask 0 fits both answers best, but only one may have it.
    loss_NMJ = torch.tensor([[[0.1, 0.2], [0.9, 0.5], [0.4, 0.9]]])
    assert matched_loss(loss_NMJ, torch.tensor([[True, True]])).tolist() == pytest.approx([(0.4 + 0.2) / 2])


def test_matched_loss_is_that_of_the_best_mask_when_there_is_one_answer():
    loss_NMJ = torch.tensor([[[0.7, -9.0], [0.3, -9.0], [0.5, -9.0]]])
    assert matched_loss(loss_NMJ, torch.tensor([[True, False]])).tolist() == pytest.approx([0.3])


def test_wrong_pixels_weigh_more_in_a_small_segment():
    small_88, large_88 = torch.zeros(8, 8), torch.zeros(8, 8)
    small_88[:2, :2], large_88[:, :4] = 1, 1
    one_wrong = torch.zeros(8, 8)
    one_wrong[7, 7] = 80

    def bce(answer_88: Tensor) -> float:
        right = answer_88[None, None]
        logits = 40 * (2 * right - 1)
        wrong, none = (mask_costs(x, right) for x in (logits + one_wrong, logits))
        dice = 1 - (2 * answer_88.sum() + 1) / (2 * answer_88.sum() + 2)
        return (wrong.loss_NMJ - none.loss_NMJ).item() - dice.item()

    # 40 nats twice, by eight times four pixels and by all 64.
    assert bce(small_88) == pytest.approx(2 * 40 / 32, rel=0.01)
    assert bce(large_88) == pytest.approx(2 * 40 / 64, rel=0.01)


def test_best_iou_ignores_answers_that_do_not_exist():
    iou_NMJ = torch.tensor([[[0.2, 0.9], [0.6, 0.1]]])
    valid = torch.tensor([[True, False]])
    assert best_iou(iou_NMJ, valid).tolist() == [[pytest.approx(0.2), pytest.approx(0.6)]]


def test_same_segment_is_the_share_of_maps_in_which_neighbours_have_one_label():
    maps_1Ass = torch.ones(1, 2, 32, 32, dtype=torch.int32)
    maps_1Ass[0, 0, :, 16:] = 2  # one annotator cuts the image in two,
    maps_1Ass[0, :, 24:] = 0  # and none labels its lower quarter
    same_Ohw = dict(zip(OFFSETS, same_segment(maps_1Ass, 16)[0], strict=True))
    right, below, slanting = same_Ohw[0, 5], same_Ohw[1, 0], same_Ohw[5, -5]
    assert right[0].tolist()[:11] == [1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.5, 1, 1, 1]
    assert right[0, 11:].isnan().all()  # beyond the image
    assert (below[:11] == 1).all()
    assert below[11:].isnan().all()
    assert slanting[:, :5].isnan().all()
    assert slanting[0, 5:].tolist() == [1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.5, 1, 1, 1]


def test_same_segment_of_cells_goes_by_what_is_in_their_middles():
    maps_1Ass = torch.ones(1, 2, 16, 16, dtype=torch.int32)
    maps_1Ass[0, 0, :, 8:] = 2  # one annotator cuts the image in two,
    maps_1Ass[0, :, 8:, 8:] = 0  # and none labels its lower right
    known_LL = torch.full((4, 4), math.nan)
    known_LL[:3, :3] = torch.tensor([[1, 0.5, 1], [0.5, 1, 0.5], [1, 0.5, 1]])
    assert_close(same_segment_cells(maps_1Ass, 2)[0], known_LL, rtol=0, atol=0, equal_nan=True)


def test_affinity_loss_falls_as_cells_of_a_segment_become_alike():
    maps_11ss = torch.ones(1, 1, 32, 32, dtype=torch.int32)
    maps_11ss[..., 16:] = 2
    left_44 = torch.tensor([1.0, 1, 0, 0]).expand(4, 4)
    by_segment = torch.stack([left_44, 1 - left_44])[None]
    across = by_segment.transpose(2, 3)
    losses = [affinity_loss(x, maps_11ss, torch.tensor([8.0, -4.0])).item() for x in (by_segment, across)]
    assert losses[0] == pytest.approx(2 * math.log1p(math.exp(-4)))
    # Half of each kind is wrong then.
    assert losses[1] == pytest.approx(math.log1p(math.exp(4)) + math.log1p(math.exp(-4)))


def test_neighbour_loss_falls_as_features_tell_segments_apart():
    maps_11ss = torch.ones(1, 1, 32, 32, dtype=torch.int32)
    maps_11ss[..., 16:] = 2
    left_hw = torch.zeros(16, 16)
    left_hw[:, :8] = 1
    losses = []
    for apart in (0.0, 0.5, 1.0):
        # The angle between the features of the two segments grows.
        features = torch.stack([torch.ones(16, 16) - apart * left_hw, 1e-3 + apart * left_hw])[None]
        losses.append(neighbour_loss(features, maps_11ss, torch.tensor([8.0, -4.0])).item())
    assert losses[0] > losses[1] > losses[2]
    # Pairs across the border are few, and as weighty as all others together.
    assert losses[0] == pytest.approx(math.log1p(math.exp(4)) + math.log1p(math.exp(-4)), abs=0.01)


def test_neighbour_loss_of_nothing_known_is_nothing():
    maps_11ss = torch.zeros(1, 1, 32, 32, dtype=torch.int32)
    assert neighbour_loss(torch.randn(1, 3, 16, 16), maps_11ss, torch.tensor([8.0, -4.0])).item() == 0


def test_pixels_of_weight_zero_do_not_count():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 8, 8, generator=generator)
    answers = torch.zeros(2, 1, 8, 8)
    answers[:, :, 2:5, 2:5] = 1
    weights = torch.ones(2, 8, 8)
    weights[:, 6:] = 0
    other = logits.clone()
    other[:, :, 6:] = 20
    first, second = mask_costs(logits, answers, weights), mask_costs(other, answers, weights)
    torch.testing.assert_close(first.loss_NMJ, second.loss_NMJ)
    torch.testing.assert_close(first.iou_NMJ, second.iou_NMJ)
    assert (mask_costs(other, answers).loss_NMJ > first.loss_NMJ).all()


def test_weights_of_one_change_nothing():
    generator = torch.Generator().manual_seed(0)
    logits, answers = torch.randn(2, 3, 8, 8, generator=generator), (torch.rand(2, 1, 8, 8, generator=generator) > 0.5)
    plain, weighed = mask_costs(logits, answers.float()), mask_costs(logits, answers.float(), torch.ones(2, 8, 8))
    assert torch.equal(plain.loss_NMJ, weighed.loss_NMJ)
    assert torch.equal(plain.iou_NMJ, weighed.iou_NMJ)
