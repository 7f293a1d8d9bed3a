"""The engine as it goes on a GPU, on one that is none (`tests/pretend_gpu.py`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest
import skimage.data
import torch

from evaluation import overlap
from model.checkpoint import load_model
from model.optimize import OptimizedSam
from pipeline.config import GeneratorConfig
from pipeline.generator import MaskGenerator
from pipeline.records import ImageMasks, StepTimer
from tests.pretend_gpu import DEVICE, pretend_gpu

CONFIG = GeneratorConfig(points_per_side=8, pred_iou_thresh=0.15, stability_score_thresh=0.3, points_per_batch=64)
CAT = skimage.data.chelsea()[60:200, 100:300]
SCREENS = pytest.mark.parametrize("screen", [None, torch.bfloat16], ids=["exact", "fast"])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def open_generator(
    device: torch.device, screen: torch.dtype | None, config: GeneratorConfig, encoder: torch.dtype = torch.float32
) -> MaskGenerator:
    return MaskGenerator(OptimizedSam(load_model("mini", None).sam.to(device), encoder, screen), config)


def generate(generator: MaskGenerator) -> ImageMasks:
    return generator.generate(generator.prepare(CAT), StepTimer())


def on_gpu(screen: torch.dtype | None, config: GeneratorConfig) -> tuple[ImageMasks, Counter[str]]:
    """The masks, and what the host waited for."""
    with pytest.MonkeyPatch.context() as monkeypatch, pretend_gpu(monkeypatch) as waits:
        generator = open_generator(DEVICE, screen, config)
        waits.clear()
        return generate(generator), +waits


@SCREENS
def test_masks_are_those_of_a_cpu(screen: torch.dtype | None) -> None:
    config = replace(CONFIG, crop_n_layers=1, min_mask_region_area=20)
    expected = generate(open_generator(torch.device("cpu"), screen, config))
    masks, _ = on_gpu(screen, config)
    assert len(masks) == len(expected) > 50
    assert masks.rle_counts == expected.rle_counts
    assert sum(masks.dropped.values()) == sum(expected.dropped.values())


def test_half_precision_of_a_gpu_finds_nearly_the_same_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = generate(open_generator(torch.device("cpu"), None, CONFIG))
    with pretend_gpu(monkeypatch):
        masks = generate(open_generator(DEVICE, torch.float16, CONFIG, encoder=torch.float16))
    iou_NN = overlap.iou(masks.rle_counts, expected.rle_counts, expected.height, expected.width)
    assert len(masks) == pytest.approx(len(expected), rel=0.05)
    assert (iou_NN.max(axis=0) >= 0.9).mean() >= 0.95


@SCREENS
def test_host_waits_twice_for_a_batch_of_prompts(screen: torch.dtype | None) -> None:
    """For which masks are to be made, and for which of these pass; in a rough look for the first alone."""
    _, few = on_gpu(screen, CONFIG)
    _, many = on_gpu(screen, replace(CONFIG, points_per_batch=4))
    assert set(few) == {"copy to the host"}
    further_batches = 64 // 4 - 1
    # What was screened is looked at again in batches too, of which there are no more.
    assert many.total() - few.total() <= (2 if screen is None else 3) * further_batches
