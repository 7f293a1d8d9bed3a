import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskmill.filters.nms import nms

# Few coordinates and few scores, so that ties, equal boxes, boxes without area and IoUs of exactly the
# threshold are common.
sides = st.integers(0, 6)
corners = st.tuples(st.integers(0, 10), st.integers(0, 10), sides, sides)
scored_boxes = st.lists(st.tuples(corners, st.sampled_from([0.1, 0.5, 0.9])), max_size=40)
thresholds = st.sampled_from([0.0, 0.25, 0.5, 0.7, 0.8, 1.0])


def _tensors(rows: list) -> tuple[torch.Tensor, torch.Tensor]:
    boxes_N4 = torch.tensor([[x, y, x + w, y + h] for (x, y, w, h), _ in rows], dtype=torch.int64).reshape(-1, 4)
    return boxes_N4, torch.tensor([score for _, score in rows], dtype=torch.float32)


def _naive_nms(boxes_N4: torch.Tensor, scores_N: torch.Tensor, iou_threshold: float) -> list[int]:
    boxes, scores = boxes_N4.tolist(), scores_N.tolist()
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if not any(_iou(boxes[i], boxes[j]) > iou_threshold for j in kept):
            kept.append(i)
    return kept


def _iou(a: list[int], b: list[int]) -> float:
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    overlap = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap
    return float(np.float32(overlap) / np.float32(union)) if union else 0.0


@settings(deadline=None)
@given(scored_boxes, thresholds)
def test_nms_agrees_with_the_definition(rows, threshold):
    boxes_N4, scores_N = _tensors(rows)
    assert nms(boxes_N4, scores_N, threshold).tolist() == _naive_nms(boxes_N4, scores_N, threshold)


@settings(deadline=None)
@given(scored_boxes, thresholds)
def test_nms_changes_nothing_when_run_again(rows, threshold):
    boxes_N4, scores_N = _tensors(rows)
    kept = nms(boxes_N4, scores_N, threshold)
    again = nms(boxes_N4[kept], scores_N[kept], threshold)
    assert again.tolist() == list(range(len(kept)))


@settings(deadline=None)
@given(scored_boxes, thresholds)
def test_nms_sorts_by_score_and_keeps_the_order_of_ties(rows, threshold):
    boxes_N4, scores_N = _tensors(rows)
    kept = nms(boxes_N4, scores_N, threshold).tolist()
    assert kept == sorted(kept, key=lambda i: (-scores_N[i].item(), i))


@settings(deadline=None)
@given(scored_boxes, thresholds)
def test_nms_keeps_every_box_without_area(rows, threshold):
    boxes_N4, scores_N = _tensors(rows)
    flat = {i for i, (x0, y0, x1, y1) in enumerate(boxes_N4.tolist()) if x0 == x1 or y0 == y1}
    assert flat <= set(nms(boxes_N4, scores_N, threshold).tolist())


def test_nms_keeps_a_box_when_its_iou_is_exactly_the_threshold():
    boxes_N4 = torch.tensor([[0, 0, 4, 1], [0, 0, 3, 1], [0, 0, 2, 1]])
    scores_N = torch.tensor([0.9, 0.8, 0.7])
    # IoUs with the first: 0.75 and 0.5; of the others with each other: 2/3.
    assert nms(boxes_N4, scores_N, 0.5).tolist() == [0, 2]
    assert nms(boxes_N4, scores_N, 0.75).tolist() == [0, 1, 2]


def test_nms_of_many_boxes_agrees_with_the_definition():
    generator = torch.Generator().manual_seed(0)
    corners_N2 = torch.randint(0, 900, (700, 2), generator=generator)
    boxes_N4 = torch.cat([corners_N2, corners_N2 + torch.randint(0, 400, (700, 2), generator=generator)], dim=1)
    scores_N = torch.rand(700, generator=generator)
    kept = nms(boxes_N4, scores_N, 0.7)
    assert 0 < len(kept) < 700
    assert kept.tolist() == _naive_nms(boxes_N4, scores_N, 0.7)
