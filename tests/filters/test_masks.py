import pytest
import torch

from maskmill.filters.masks import MaskBatch


def _batch(rows: int, **columns) -> MaskBatch:
    defaults = {
        "logits": torch.zeros(rows, 2, 2),
        "predicted_iou": torch.arange(rows, dtype=torch.float32),
        "stability_score": torch.zeros(rows),
        "area": torch.zeros(rows, dtype=torch.int64),
        "boxes": torch.zeros(rows, 4, dtype=torch.int64),
        "points": torch.zeros(rows, 2, dtype=torch.float64),
        "crop_boxes": torch.zeros(rows, 4, dtype=torch.int64),
    }
    return MaskBatch(**{**defaults, **columns})


def test_batch_is_refused_when_columns_do_not_align():
    with pytest.raises(AssertionError, match="align"):
        _batch(3, area=torch.zeros(2, dtype=torch.int64))


def test_select_takes_a_boolean_mask_or_an_order():
    batch = _batch(3)
    assert batch.select(torch.tensor([True, False, True])).predicted_iou.tolist() == [0, 2]
    assert batch.select(torch.tensor([2, 0])).predicted_iou.tolist() == [2, 0]


def test_concat_keeps_the_order_of_rows():
    assert MaskBatch.concat([_batch(2), _batch(0), _batch(1)]).predicted_iou.tolist() == [0, 1, 0]
