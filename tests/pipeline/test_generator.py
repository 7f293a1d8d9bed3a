from __future__ import annotations

import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import skimage.measure
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskmill.filters import rle
from maskmill.filters.names import FILTERS
from maskmill.model.embedding import ImageEmbedding
from maskmill.model.mask_decoder import DecodedPrompts
from maskmill.pipeline.config import PRESETS, GeneratorConfig
from maskmill.pipeline.generator import MaskGenerator
from maskmill.pipeline.prompts import plan_views
from maskmill.pipeline.records import ImageMasks, StepTimer
from testing.colour_sam import ColourSam

OFFICIAL = GeneratorConfig(points_per_side=8, stability_score_thresh=0.85)
SA1B = replace(PRESETS["sa1b"], points_per_side=8, stability_score_thresh=0.85)
CAT = skimage.data.chelsea()[60:200, 100:300]


def _generate(pixels_HW3: NDArray[np.uint8], config: GeneratorConfig) -> ImageMasks:
    generator = MaskGenerator(ColourSam(), config)
    return generator.generate(generator.prepare(pixels_HW3), StepTimer())


def _candidates(pixels_HW3: NDArray[np.uint8], config: GeneratorConfig) -> int:
    """Three masks for every point of every view."""
    height, width = pixels_HW3.shape[:2]
    return 3 * sum(len(view.points_P2) for view in plan_views(height, width, config))


def _decode(masks: ImageMasks) -> list[NDArray[np.bool_]]:
    return [rle.decode(counts, masks.height, masks.width) for counts in masks.rle_counts]


@pytest.mark.parametrize("config", [OFFICIAL, SA1B, replace(OFFICIAL, min_mask_region_area=100, crop_n_layers=1)])
def test_every_candidate_is_returned_or_counted_as_dropped(config):
    masks = _generate(CAT, config)
    assert tuple(masks.dropped) == FILTERS
    assert len(masks) + sum(masks.dropped.values()) == _candidates(CAT, config)
    # None of these should be idle, or the sum above says little.
    assert min(masks.dropped["predicted_iou"], masks.dropped["stability_score"], masks.dropped["box_nms"]) > 0


def test_rows_describe_their_masks():
    masks = _generate(CAT, SA1B)
    assert len(masks) > 10
    for row, mask_HW in enumerate(_decode(masks)):
        y, x = mask_HW.nonzero()
        assert masks.area[row] == len(x)
        assert masks.boxes[row].tolist() == [x.min(), y.min(), x.max() - x.min(), y.max() - y.min()]
        crop_x, crop_y, crop_width, crop_height = masks.crop_boxes[row]
        assert crop_x <= masks.points[row, 0] <= crop_x + crop_width
        assert crop_y <= masks.points[row, 1] <= crop_y + crop_height
        assert masks.predicted_iou[row] > SA1B.pred_iou_thresh
        assert masks.stability_score[row] >= SA1B.stability_score_thresh


@pytest.mark.parametrize("config", [OFFICIAL, SA1B])
def test_masks_do_not_depend_on_points_per_batch(config):
    together = _generate(CAT, replace(config, points_per_batch=1000))
    for points_per_batch in (1, 7):
        masks = _generate(CAT, replace(config, points_per_batch=points_per_batch))
        assert masks.rle_counts == together.rle_counts
        np.testing.assert_array_equal(masks.predicted_iou, together.predicted_iou)
        np.testing.assert_array_equal(masks.stability_score, together.stability_score)
        np.testing.assert_array_equal(masks.points, together.points)


class RoughSam(ColourSam):
    """Somewhat off, by another amount for each candidate; what it says of some points are no numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.prompts = 0

    def decode_points(self, embedding: ImageEmbedding, points_N2: Tensor) -> DecodedPrompts:
        decoded = super().decode_points(embedding, points_N2)
        self.prompts += len(points_N2)
        error_N1 = 0.005 * (points_N2.sum(dim=1, keepdim=True) * 7).sin().float()
        broken_N1 = points_N2[:, :1].long() % 10 == 3
        iou_NM = (decoded.predicted_iou_NM + error_N1).masked_fill(broken_N1, torch.nan)
        logits_NMhw = (decoded.image_tokens_NCYX + 0.01).masked_fill(broken_N1[..., None, None], torch.nan)
        return replace(decoded, predicted_iou_NM=iou_NM, image_tokens_NCYX=logits_NMhw)


class ScreenedSam(ColourSam):
    """One whose prompts are screened."""

    def __init__(self) -> None:
        super().__init__()
        self.rough, self.prompts = RoughSam(), 0

    def screen(self) -> RoughSam:
        return self.rough

    def decode_points(self, embedding: ImageEmbedding, points_N2: Tensor) -> DecodedPrompts:
        self.prompts += len(points_N2)
        return super().decode_points(embedding, points_N2)


@pytest.mark.parametrize("config", [replace(OFFICIAL, points_per_side=16, box_nms_thresh=0.3), SA1B])
def test_screening_changes_no_mask_and_spares_prompts(config):
    expected, network = _generate(CAT, config), ScreenedSam()
    generator = MaskGenerator(network, config)
    masks = generator.generate(generator.prepare(CAT), StepTimer())
    assert masks.rle_counts == expected.rle_counts
    for column in ("predicted_iou", "stability_score", "points", "crop_boxes"):
        np.testing.assert_array_equal(getattr(masks, column), getattr(expected, column))
    assert len(masks) + sum(masks.dropped.values()) == _candidates(CAT, config)
    assert 3 * network.rough.prompts == _candidates(CAT, config)
    assert 0 < network.prompts < 0.9 * network.rough.prompts


@pytest.mark.parametrize("views_per_batch", [2, 5, 100])
def test_masks_do_not_depend_on_views_per_batch(views_per_batch):
    one_by_one, generator = _generate(CAT, SA1B), MaskGenerator(ColourSam(), SA1B, views_per_batch)
    masks = generator.generate(generator.prepare(CAT), StepTimer())
    assert len(set(map(tuple, masks.crop_boxes.tolist()))) > 5
    assert masks.rle_counts == one_by_one.rle_counts
    for column in ("predicted_iou", "stability_score", "points", "crop_boxes"):
        np.testing.assert_array_equal(getattr(masks, column), getattr(one_by_one, column))


class RecordingSam(ColourSam):
    """Keeps the embeddings that points are decoded with, and how many images were encoded at once."""

    def __init__(self) -> None:
        super().__init__()
        self.encoded: list[int] = []
        self.decoded: list[ImageEmbedding] = []

    def encode_images(self, images_B3SS: Tensor) -> ImageEmbedding:
        self.encoded.append(len(images_B3SS))
        return super().encode_images(images_B3SS)

    def decode_points(self, embedding: ImageEmbedding, points_N2: Tensor) -> DecodedPrompts:
        self.decoded.append(embedding)
        return super().decode_points(embedding, points_N2)


def test_all_points_of_a_view_are_decoded_with_one_embedding_object():
    """A decoder keeps what it computed of the last embedding, which it knows by its identity."""
    height, width = CAT.shape[:2]
    network, views = RecordingSam(), len(plan_views(height, width, SA1B))
    generator = MaskGenerator(network, replace(SA1B, points_per_batch=3), views_per_batch=8)
    generator.generate(generator.prepare(CAT), StepTimer())
    assert network.encoded == [8, 8, 5]
    assert len(network.decoded) > 2 * views
    assert {len(embedding) for embedding in network.decoded} == {1}
    assert len(list(groupby(network.decoded, key=id))) == views


def test_prepared_image_keeps_no_pixels_but_those_the_network_sees():
    pixels_HW3 = np.zeros((900, 1200, 3), np.uint8)
    image = MaskGenerator(ColourSam(), SA1B).prepare(pixels_HW3)
    assert (image.height, image.width) == (900, 1200)
    assert len(image.views) == len(plan_views(900, 1200, SA1B))
    for _, view_hw3 in image.views:
        assert (max(view_hw3.shape), view_hw3.dtype) == (ColourSam().config.image_size, torch.uint8)
        assert view_hw3.untyped_storage().nbytes() == view_hw3.numel()


def test_all_steps_of_the_engine_are_timed():
    timer = StepTimer()
    generator = MaskGenerator(ColourSam(), OFFICIAL)
    generator.generate(generator.prepare(CAT), timer)
    assert set(timer.milliseconds) == {"encode", "prompt", "filter", "rle"}


# The published generator fails on some of these.


@pytest.mark.parametrize("config", [OFFICIAL, SA1B])
def test_image_has_no_masks_when_none_passes(config):
    masks = _generate(CAT, replace(config, pred_iou_thresh=2.0))
    assert len(masks) == 0
    assert masks.boxes.shape == masks.crop_boxes.shape == (0, 4)
    assert masks.dropped["predicted_iou"] == _candidates(CAT, config)


def test_image_has_no_masks_when_all_are_unstable():
    masks = _generate(CAT, replace(SA1B, stability_score_thresh=1.0, stability_score_offset=19.0))
    assert len(masks) == 0
    assert masks.dropped["stability_score"] > 0


def test_crops_may_be_without_masks():
    scores = _generate(CAT, replace(SA1B, box_nms_thresh=1, crop_nms_thresh=1)).predicted_iou
    masks = _generate(CAT, replace(SA1B, pred_iou_thresh=float(np.sort(scores)[-5])))
    assert 0 < len(masks) < 5


@pytest.mark.parametrize("config", [OFFICIAL, SA1B, replace(SA1B, pred_iou_thresh=0, stability_score_thresh=0)])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 7), (2000, 3), (3, 2000), (5000, 1)])
def test_images_of_any_shape_have_masks_or_none(size, config):
    pixels_HW3 = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    masks = _generate(pixels_HW3, config)
    assert (masks.height, masks.width) == size
    assert len(masks) + sum(masks.dropped.values()) == _candidates(pixels_HW3, config)
    assert [mask_HW.shape for mask_HW in _decode(masks)] == [size] * len(masks)


def test_explicit_points_replace_the_grid():
    grid = np.array([[0.5, 0.5]])
    config = replace(OFFICIAL, points_per_side=None, point_grids=(grid,), pred_iou_thresh=0, stability_score_thresh=0)
    masks = _generate(CAT, config)
    assert set(map(tuple, masks.points.tolist())) == {(100.0, 70.0)}


def test_masks_over_most_of_the_image_are_dropped_when_coverage_is_limited():
    plain = np.full((60, 80, 3), 128, np.uint8)
    config = replace(OFFICIAL, points_per_side=4)
    everything = _generate(plain, config)
    limited = _generate(plain, replace(config, max_coverage=0.95))
    covering = int((everything.area >= 0.95 * 60 * 80).sum())
    assert 0 < covering < len(everything)
    assert limited.dropped["coverage"] == covering
    assert limited.area.tolist() == [area for area in everything.area if area < 0.95 * 60 * 80]


def test_no_small_region_remains_when_small_masks_are_dropped():
    pixels_HW3 = skimage.data.coffee()[120:320, :300]
    # Loose thresholds: what they let through has holes and islands.
    config = replace(OFFICIAL, pred_iou_thresh=0.5, stability_score_thresh=0.5, min_mask_region_area=400)
    masks = _generate(pixels_HW3, replace(config, drop_small_masks=True))
    kept = _generate(pixels_HW3, config)
    assert 0 < len(masks) < len(kept)
    assert masks.dropped["small_regions"] > kept.dropped["small_regions"]
    for mask_HW in _decode(masks):
        for region_HW in (mask_HW, ~mask_HW):
            labels_HW = np.asarray(skimage.measure.label(region_HW, connectivity=2))
            assert all(area >= 400 for area in np.bincount(labels_HW.flatten())[1:])


def _peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def _growth_of_peak_with_the_number_of_masks() -> tuple[int, int]:
    """How many masks more, and how many bytes they add to the peak, on one large image."""
    plain = np.full((4096, 4096, 3), 128, np.uint8)
    config = GeneratorConfig(points_per_side=1, pred_iou_thresh=0, stability_score_thresh=0, box_nms_thresh=1)
    few = len(_generate(plain, config))
    before = _peak_bytes()
    many = len(_generate(plain, replace(config, points_per_side=3)))
    return many - few, _peak_bytes() - before


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_peak_memory_does_not_grow_with_the_number_of_masks_when_image_is_large(monkeypatch):
    # The peak is to be of what is in use: free memory goes back at once instead of lying in the heap for later.
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", str(2**20))
    # In a fresh process: the peak of this one is that of all the tests before.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        masks, growth = process.submit(_growth_of_peak_with_the_number_of_masks).result()
    assert masks == 24
    # Kept as booleans, they would be 24 * 16 MiB.
    assert growth < 64 * 2**20
