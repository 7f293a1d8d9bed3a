"""Average recall of object proposals: AR@10, 100 and 1000, by object size, from pycocotools' COCOeval.

Recall at an IoU threshold is the share of annotated masks that are matched, one to one, by one of the best n proposals
of their image; AR is its mean over thresholds 0.50, 0.55 ... 0.95. Classes are ignored. If an image has
several annotators, the proposals are matched with the masks of each annotator separately.

Shapes: T IoU thresholds, A size ranges, L limits of proposals, K annotated masks, D proposals.
Source: Kirillov et al. 2023, Appendix D.3.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskmill.annotations import AnnotatedImage
from maskmill.evaluation import overlap
from maskmill.filters import rle

LIMITS = (10, 100, 1000)
SIZES = ("all", "small", "medium", "large")  # of COCOeval: small up to 32^2 pixels, large from 96^2 pixels
_CATEGORY = 1
_Annotation = dict[str, Any]  # in the COCO format


@dataclass(frozen=True, eq=False)
class Matches:
    """The number of matched annotated masks of one image, and of all its annotated masks."""

    matched_TAL: NDArray[np.int64]
    masks_A: NDArray[np.int64]


def average_recall(images: Sequence[Matches]) -> dict[str, dict[str, float | None]]:
    """AR by size and limit: {"small": {"10": 0.2, ...}, ...}; None if no mask has that size. At least one image."""
    matched_AL = np.sum([image.matched_TAL for image in images], axis=0).mean(axis=0)
    masks_A = np.sum([image.masks_A for image in images], axis=0)
    return {
        size: {
            str(limit): float(matched_AL[a, column] / masks_A[a]) if masks_A[a] else None
            for column, limit in enumerate(LIMITS)
        }
        for a, size in enumerate(SIZES)
    }


def match_proposals(proposals_D: Sequence[bytes], image: AnnotatedImage) -> Matches:
    """Matches the proposals of an image (COCO counts, best first) with its masks. Crowds are left out."""
    proposals_D = proposals_D[: LIMITS[-1]]
    evaluator = COCOeval(iouType="segm")
    thresholds_T = evaluator.params.iouThrs
    matched_TAL = np.zeros((len(thresholds_T), len(SIZES), len(LIMITS)), np.int64)
    masks_A = np.zeros(len(SIZES), np.int64)
    truth, proposed, rank_of_id = _annotations(proposals_D, image, thresholds_T[0])
    # pycocotools prints its progress.
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.cocoGt, evaluator.cocoDt = _coco(image, truth), _coco(image, proposed)
        evaluator.params.imgIds = list(evaluator.cocoGt.imgs)
        evaluator.params.useCats = 0
        evaluator.params.catIds = [_CATEGORY]
        evaluator.params.maxDets = list(LIMITS)
        evaluator.evaluate()
    sizes = {tuple(bounds): a for a, bounds in enumerate(evaluator.params.areaRng)}
    for result in evaluator.evalImgs:
        if result is None:
            continue
        a = sizes[tuple(result["aRng"])]
        masks_A[a] += np.count_nonzero(result["gtIgnore"] == 0)
        matched_TD = (result["dtMatches"] > 0) & (result["dtIgnore"] == 0)
        rank_D = np.array([rank_of_id[i] for i in result["dtIds"]], np.int64)
        for column, limit in enumerate(LIMITS):
            matched_TAL[:, a, column] += matched_TD[:, rank_D < limit].sum(axis=1)
    return Matches(matched_TAL, masks_A)


def _annotations(
    proposals_D: Sequence[bytes], image: AnnotatedImage, lowest_iou: float
) -> tuple[list[_Annotation], list[_Annotation], dict[int, int]]:
    """The masks and proposals for COCOeval, one COCO image per annotator, and the rank of each proposal by id.

    Proposals that overlap no mask enough are left out: most do not, and COCOeval visits each about a hundred times.
    """
    truth, proposed, rank_of_id = [], [], {}
    for annotator in np.unique(image.annotator_K):
        chosen = np.flatnonzero((image.annotator_K == annotator) & ~image.crowd_K)
        counts_K = [image.rles[k] for k in chosen]
        for k, counts in zip(chosen, counts_K, strict=True):
            # Ids start at 1: COCOeval uses 0 for "no match".
            truth.append(_annotation(int(k) + 1, int(annotator), counts, image))
        overlap_DK = overlap.iou(proposals_D, counts_K, image.height, image.width)
        for rank in np.flatnonzero((overlap_DK >= lowest_iou).any(axis=1)).tolist():
            number = len(proposed) + 1
            rank_of_id[number] = rank
            proposed.append(_annotation(number, int(annotator), proposals_D[rank], image) | {"score": -rank})
    return truth, proposed, rank_of_id


def _annotation(number: int, annotator: int, counts: bytes, image: AnnotatedImage) -> _Annotation:
    return {
        "id": number,
        "image_id": annotator,
        "category_id": _CATEGORY,
        "segmentation": {"size": [image.height, image.width], "counts": counts},
        "area": rle.area(counts, image.height, image.width),
        "iscrowd": 0,
    }


def _coco(image: AnnotatedImage, annotations: list[_Annotation]) -> COCO:
    coco = COCO()
    dataset: dict[str, Any] = {
        "images": [
            {"id": int(annotator), "height": image.height, "width": image.width}
            for annotator in np.unique(image.annotator_K)
        ],
        "annotations": annotations,
    }
    coco.dataset = dataset  # pyright: ignore[reportAttributeAccessIssue]  # its declared type requires unused fields
    coco.createIndex()
    return coco
