"""Average recall, by hand and against COCOeval over a whole data set."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from numpy.random import Generator
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskmill.annotations import AnnotatedImage
from maskmill.evaluation.proposals import LIMITS, SIZES, average_recall, match_proposals
from maskmill.filters import rle
from tests.evaluation.drawings import Mask, annotated, rectangle

# 8 x 10 pixels each, so that one column is a tenth.
A = rectangle(8, 40, slice(None), slice(0, 10))
B = rectangle(8, 40, slice(None), slice(10, 20))
MOST_OF_A = rectangle(8, 40, slice(None), slice(0, 7))  # IoU 0.7: five of the ten thresholds, 0.50 to 0.70
ELSEWHERE = rectangle(8, 40, slice(None), slice(30, 40))


def _recall(proposals: list[Mask], image: AnnotatedImage) -> dict[str, dict[str, float | None]]:
    return average_recall([match_proposals([rle.encode(mask) for mask in proposals], image)])


def test_recall_is_one_when_the_proposals_are_the_masks() -> None:
    recall = _recall([B, ELSEWHERE, A], annotated([A, B]))
    assert recall["all"] == {"10": 1, "100": 1, "1000": 1}
    assert recall["small"]["10"] == 1
    assert recall["large"] == {"10": None, "100": None, "1000": None}


def test_recall_is_zero_when_there_are_no_proposals() -> None:
    assert _recall([], annotated([A, B]))["all"] == {"10": 0, "100": 0, "1000": 0}


def test_recall_is_the_mean_over_the_thresholds_that_the_iou_passes() -> None:
    assert _recall([MOST_OF_A], annotated([A, B]))["all"]["10"] == pytest.approx(0.5 / 2)


def test_a_proposal_answers_one_mask_only_but_that_for_every_annotator() -> None:
    assert _recall([A], annotated([A, A]))["all"]["10"] == pytest.approx(1 / 2)
    assert _recall([A], annotated([A, A], annotators=[3, 7]))["all"]["10"] == 1


def test_only_the_best_proposals_count_when_there_are_more_than_the_limit() -> None:
    recall = _recall([ELSEWHERE] * 10 + [A], annotated([A, B]))["all"]
    assert (recall["10"], recall["100"]) == (0, 0.5)


def test_crowds_are_not_there() -> None:
    assert _recall([A], annotated([A, B], crowds=[False, True]))["all"]["10"] == 1
    assert _recall([A], annotated([A], crowds=[True]))["all"]["10"] is None


def test_sizes_go_by_area() -> None:
    sides = {"small": 31, "medium": 50, "large": 97}
    masks = [rectangle(200, 200, slice(0, side), slice(side, 2 * side)) for side in sides.values()]
    for size, mask in zip(sides, masks, strict=True):
        recall = _recall([mask], annotated(masks))
        assert recall["all"]["10"] == pytest.approx(1 / 3)
        assert {name: recall[name]["10"] for name in sides} == {name: float(name == size) for name in sides}


def test_the_figures_are_those_of_cocoeval_over_all_images() -> None:
    rng = np.random.default_rng(5)
    images = [annotated([_blob(rng) for _ in range(12)], crowds=list(rng.random(12) < 0.2)) for _ in range(3)]
    proposals = [
        [_nudged(image.decode(int(rng.integers(12))), rng) for _ in range(60)] + [_blob(rng) for _ in range(60)]
        for image in images
    ]
    for masks in proposals:
        rng.shuffle(masks)
    ours = average_recall(
        [
            match_proposals([rle.encode(mask) for mask in masks], image)
            for masks, image in zip(proposals, images, strict=True)
        ]
    )
    theirs = _cocoeval(images, proposals)
    for a, size in enumerate(SIZES):
        for m, limit in enumerate(LIMITS):
            assert ours[size][str(limit)] == pytest.approx(theirs[:, 0, a, m].mean())
    assert 0.1 < theirs.mean() < 0.9


def _blob(rng: Generator) -> Mask:
    side = int(rng.choice([12, 25, 60, 110]))
    y, x = rng.integers(0, 150 - side, 2)
    return rectangle(150, 150, slice(y, y + side), slice(x, x + side + int(rng.integers(-8, 8))))


def _nudged(mask_HW: Mask, rng: Generator) -> Mask:
    return np.roll(mask_HW, rng.integers(-4, 4, 2), axis=(0, 1))


def _cocoeval(images: list[AnnotatedImage], proposals: list[list[Mask]]) -> np.ndarray:
    """Recall (T, 1, A, L) of everything given to pycocotools at once."""
    truth: list[dict[str, Any]] = []
    proposed: list[dict[str, Any]] = []
    for i, (image, masks) in enumerate(zip(images, proposals, strict=True)):
        for counts, crowd in zip(image.rles, image.crowd_K, strict=True):
            truth.append(_annotation(truth, i, counts) | {"iscrowd": int(crowd)})
        for rank, mask in enumerate(masks):
            proposed.append(_annotation(proposed, i, rle.encode(mask)) | {"iscrowd": 0, "score": 1 / (1 + rank)})
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator = COCOeval(_coco(truth, len(images)), _coco(proposed, len(images)), "segm")
        evaluator.params.useCats = 0
        evaluator.params.maxDets = list(LIMITS)
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator.eval["recall"]


def _annotation(others: list[dict[str, Any]], image: int, counts: bytes) -> dict[str, Any]:
    segmentation = {"size": [150, 150], "counts": counts}
    area = rle.area(counts, 150, 150)
    return {"id": len(others) + 1, "image_id": image, "category_id": 1, "segmentation": segmentation, "area": area}


def _coco(annotations: list[dict[str, Any]], images: int) -> COCO:
    coco = COCO()
    dataset: Any = {
        "images": [{"id": i, "height": 150, "width": 150} for i in range(images)],
        "annotations": annotations,
        "categories": [{"id": 1}],
    }
    coco.dataset = dataset
    coco.createIndex()
    return coco
