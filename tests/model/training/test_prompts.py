"""Prompts and their answers."""

from __future__ import annotations

import numpy as np
import torch

from maskmill.model.training.augment import fit
from maskmill.model.training.data import LabelledImage
from maskmill.model.training.prompts import error_clicks, make_batch
from tests.model.training.tiny import TINY, squares


def _batch(image: LabelledImage, clicks: int = 16, boxes: int = 8, seed: int = 0):
    return make_batch([fit(image, 64), fit(image, 64)], clicks, boxes, TINY, np.random.default_rng(seed))


def test_clicks_lie_in_their_first_answer():
    batch = _batch(squares())
    assert batch.click_answers_NJhw.shape == (32, 3, 16, 16)
    x_N, y_N = (batch.clicks_N2 / 4).long().T
    assert (batch.click_answers_NJhw[torch.arange(32), 0, y_N, x_N] > 0).all()


def test_one_annotator_gives_one_answer():
    assert _batch(squares()).click_valid_NJ.tolist() == [[True, False, False]] * 32


def test_annotators_who_differ_give_several_answers_but_those_who_agree_only_one():
    one = squares()
    nothing = np.ones_like(one.maps_AHW)
    image = LabelledImage(one.pixels_HW3, np.concatenate([one.maps_AHW, one.maps_AHW, nothing]))
    answers_N = _batch(image).click_valid_NJ.sum(dim=1)
    assert answers_N.max() == 2


def test_every_segment_is_clicked_however_small():
    image = squares()
    image.maps_AHW[0, 60:64, 0:4] = 4
    image.maps_AHW[0, 50:60, 0:10] = 5
    batch = _batch(image, clicks=64)
    areas = {round(float(a), 2) for a in batch.click_answers_NJhw[:, 0].sum(dim=(1, 2))}
    assert len(areas) >= 4


def test_boxes_surround_their_answers_roughly():
    batch = _batch(squares())
    for box_4, answer_hw in zip(batch.boxes_N4, batch.box_answers_Nhw, strict=True):
        rows, columns = answer_hw.amax(1).nonzero()[:, 0] * 4, answer_hw.amax(0).nonzero()[:, 0] * 4
        exact_4 = torch.stack([columns.min(), rows.min(), columns.max() + 4, rows.max() + 4])
        assert (box_4 - exact_4).abs().max() <= 20


def test_padding_is_zero_after_normalising():
    wide = LabelledImage(np.full((32, 64, 3), 10, np.uint8), np.ones((1, 32, 64), np.int32))
    images = _batch(wide).images_B3SS
    assert (images[:, :, :32] < -1).all()
    assert not images[:, :, 32:].any()


def test_error_click_falls_on_the_only_wrong_pixel():
    answers_Nhw = torch.zeros(2, 16, 16)
    answers_Nhw[0, 5, 9] = 1  # missed
    logits_Nhw = torch.full((2, 16, 16), -3.0)
    logits_Nhw[1, 2, 3] = 3  # too much
    clicks_N2, labels_N = error_clicks(logits_Nhw, answers_Nhw, torch.Generator().manual_seed(0))
    assert (clicks_N2 // 4).tolist() == [[9, 5], [3, 2]]
    assert labels_N.tolist() == [1, 0]
