"""Everything a model proposes, against the generator with its filters off."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.data

from maskmill.evaluation.candidates import NMS_THRESHOLD, find_candidates
from maskmill.filters import rle
from maskmill.pipeline.config import GeneratorConfig
from maskmill.pipeline.generator import MaskGenerator
from maskmill.pipeline.records import StepTimer
from testing.colour_sam import ColourSam

PIXELS = skimage.data.chelsea()[60:160, 100:240]


def test_candidates_are_those_of_the_generator_without_its_thresholds() -> None:
    config = GeneratorConfig(
        points_per_side=4, pred_iou_thresh=0, stability_score_thresh=0, box_nms_thresh=NMS_THRESHOLD
    )
    generator = MaskGenerator(ColourSam(), config)
    generated = generator.generate(generator.prepare(PIXELS), StepTimer())
    score = (generated.predicted_iou.astype(np.float64) + generated.stability_score) / 2
    best_first = np.argsort(-score, kind="stable")
    found = find_candidates(ColourSam(), PIXELS, 4, 1000)
    assert found.rles == tuple(generated.rle_counts[i] for i in best_first)
    assert found.score_K == pytest.approx(score[best_first])
    assert len(found.rles) > 10


def test_candidates_are_the_best_when_there_are_more_than_the_limit() -> None:
    everything = find_candidates(ColourSam(), PIXELS, 4, 1000)
    assert find_candidates(ColourSam(), PIXELS, 4, 5).rles == everything.rles[:5]


def test_a_mask_without_a_pixel_is_no_candidate() -> None:
    everything = find_candidates(ColourSam(), PIXELS, 4, 1000)
    assert all(rle.area(counts, *PIXELS.shape[:2]) for counts in everything.rles)
    # Nothing is as bright as this model wants it: all of its masks are empty.
    assert find_candidates(_Blind(), PIXELS, 2, 10).rles == ()


class _Blind(ColourSam):
    def decode_masks(self, decoded, keep_NM):
        return super().decode_masks(decoded, keep_NM) - 1000
