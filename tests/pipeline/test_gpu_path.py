"""The engine as it goes on a GPU, on one that is none (`tests/pretend_gpu.py`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from maskmill.model.checkpoint import load_model
from maskmill.model.optimize import OptimizedNetwork, device_answers
from maskmill.pipeline.config import GeneratorConfig
from maskmill.pipeline.generator import MaskGenerator
from maskmill.pipeline.records import ImageMasks
from tests.fakes import DEVICE_LOST
from tests.pipeline.test_batches import CAT, generate, torch_threads
from tests.pretend_gpu import DEVICE, pretend_gpu

CONFIG = GeneratorConfig(points_per_side=8, pred_iou_thresh=0.15, stability_score_thresh=0.3, points_per_batch=64)
SCREENS = pytest.mark.parametrize("screen", [None, torch.bfloat16], ids=["exact", "fast"])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with torch_threads(1):
        yield


def open_generator(
    device: torch.device, screen: torch.dtype | None, config: GeneratorConfig, gpu_share: float = 1
) -> MaskGenerator:
    network = OptimizedNetwork(load_model("mini", None).network.to(device), torch.float32, screen_dtype=screen)
    return MaskGenerator(network, config, gpu_share=gpu_share)


def on_gpu(
    screen: torch.dtype | None, config: GeneratorConfig, gpu_share: float = 1
) -> tuple[ImageMasks, Counter[str]]:
    """The masks, and what the host waited for."""
    with pytest.MonkeyPatch.context() as monkeypatch, pretend_gpu(monkeypatch) as waits:
        generator = open_generator(DEVICE, screen, config, gpu_share)
        waits.clear()
        return generate(generator, CAT), +waits


@SCREENS
def test_masks_are_those_of_a_cpu(screen: torch.dtype | None) -> None:
    # Thresholds below those of CONFIG: more masks to compare.
    low = {"pred_iou_thresh": 0.05, "stability_score_thresh": 0.1}
    config = replace(CONFIG, points_per_side=12, crop_n_layers=1, min_mask_region_area=20, **low)
    expected = generate(open_generator(torch.device("cpu"), screen, config), CAT)
    masks, _ = on_gpu(screen, config)
    assert len(masks) == len(expected) > 50
    assert masks.rle_counts == expected.rle_counts
    assert sum(masks.dropped.values()) == sum(expected.dropped.values())


@SCREENS
def test_host_waits_twice_for_a_batch_of_prompts(screen: torch.dtype | None) -> None:
    """For which masks are to be made, and for which of these pass; in a rough look for the first alone."""
    _, few = on_gpu(screen, CONFIG)
    _, many = on_gpu(screen, replace(CONFIG, points_per_batch=4))
    assert set(few) == {"copy to the host"}
    further_batches = 64 // 4 - 1
    # What was screened is looked at again in batches too, of which there are no more.
    assert many.total() - few.total() <= (2 if screen is None else 3) * further_batches


def test_batches_are_smaller_when_workers_share_the_gpu() -> None:
    config = replace(CONFIG, points_per_batch=None)
    masks, few = on_gpu(None, config)
    same, many = on_gpu(None, config, gpu_share=0.001)
    assert many.total() > few.total(), "the host waits for each batch"
    assert same.rle_counts == masks.rle_counts


def test_pretended_gpu_mixes_no_devices_and_counts_what_the_host_asks_for() -> None:
    with pytest.MonkeyPatch.context() as monkeypatch, pretend_gpu(monkeypatch) as waits:
        x = torch.ones(3, device=DEVICE)
        with pytest.raises(AssertionError, match="add mixes a GPU's tensors with a CPU's"):
            x + torch.ones(3)
        assert (x + 1).sum() * 2 == 12  # `bool` of it
        assert x[x > 2].tolist() == []
        x.to("cpu")
        x + torch.ones(3).to(DEVICE, non_blocking=True)
        assert +waits == {"__bool__": 1, "__getitem__": 1, "tolist": 1, "copy to the host": 1}


def test_device_answers_until_it_has_faulted() -> None:
    with pytest.MonkeyPatch.context() as monkeypatch, pretend_gpu(monkeypatch):
        assert open_generator(DEVICE, None, CONFIG).device_answers()
    with pytest.MonkeyPatch.context() as monkeypatch, pretend_gpu(monkeypatch, DEVICE_LOST):
        assert not device_answers(DEVICE)
        assert device_answers(torch.device("cpu"))
