from collections import Counter

import pytest
import torch

from maskmill.filters import chain
from maskmill.filters.masks import MaskBatch


def _batch(**columns) -> MaskBatch:
    """Two far-apart masks from one crop, unless a column says otherwise."""
    rows = len(next(iter(columns.values())))
    defaults = {
        "logits": torch.zeros(rows, 2, 2),
        "predicted_iou": torch.ones(rows),
        "stability_score": torch.ones(rows),
        "area": torch.full((rows,), 10),
        "boxes": torch.arange(rows)[:, None] * 100 + torch.tensor([0, 0, 9, 9]),
        "points": torch.arange(2 * rows, dtype=torch.float64).reshape(rows, 2),
        "crop_boxes": torch.tensor([0, 0, 1000, 1000]).repeat(rows, 1),
    }
    return MaskBatch(**{**defaults, **columns})


def _kept(batch: MaskBatch, filter_: chain.Filter) -> list[int]:
    """Which rows are kept, in their new order."""
    kept = chain.apply(batch, (filter_,), Counter())
    return [batch.points.tolist().index(point) for point in kept.points.tolist()]


@pytest.mark.parametrize("apply", [chain.apply, chain.apply_together])
def test_every_drop_is_counted_under_the_first_filter_that_drops(apply):
    batch = _batch(stability_score=torch.tensor([0.9, 0.99, 0.97, 0.2]), area=torch.tensor([1, 1, 90, 95]))
    dropped = Counter({"coverage": 5})
    kept = apply(batch, (chain.stability_score(0.95), chain.coverage(0.9, 10, 10)), dropped)
    assert kept.points.tolist() == batch.points[1:2].tolist()
    assert dropped == {"stability_score": 2, "coverage": 6}


def test_stability_score_keeps_a_mask_at_the_threshold_and_drops_nan():
    batch = _batch(stability_score=torch.tensor([0.95, 0.94, float("nan")]))
    assert _kept(batch, chain.stability_score(0.95)) == [0]


def test_crop_edge_drops_masks_that_the_crop_cuts():
    crop_boxes = torch.tensor([[0, 0, 500, 500]] * 2)
    boxes = torch.tensor([[0, 0, 100, 100], [300, 300, 490, 400]])
    assert _kept(_batch(boxes=boxes, crop_boxes=crop_boxes), chain.crop_edge(1000, 1000)) == [0]


def test_box_nms_keeps_the_best_predicted_iou():
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60]])
    batch = _batch(boxes=boxes, predicted_iou=torch.tensor([0.8, 0.9, 0.95]))
    assert _kept(batch, chain.box_nms(0.7)) == [2, 1]


def test_crop_nms_keeps_the_mask_of_the_smallest_crop():
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 9]])
    crop_boxes = torch.tensor([[0, 0, 1000, 1000], [0, 0, 500, 500]])
    batch = _batch(boxes=boxes, crop_boxes=crop_boxes, predicted_iou=torch.tensor([0.99, 0.9]))
    assert _kept(batch, chain.crop_nms(0.7)) == [1]


def test_coverage_drops_masks_over_the_share_of_the_image_or_more():
    assert _kept(_batch(area=torch.tensor([94, 95, 96])), chain.coverage(0.95, 10, 10)) == [0]


def test_filters_pass_an_empty_batch():
    empty = _batch(stability_score=torch.zeros(2)).select(torch.zeros(2, dtype=torch.bool))
    filters = (
        chain.stability_score(0.9),
        chain.crop_edge(9, 9),
        chain.box_nms(0.7),
        chain.crop_nms(0.7),
        chain.coverage(0.95, 9, 9),
    )
    assert len(chain.apply(empty, filters, Counter())) == 0
    assert len(chain.apply_together(empty, filters[:2], Counter())) == 0
