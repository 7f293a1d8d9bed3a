"""Each engine of a comparison runs in a process of its own, with the weights and masks of the others."""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import replace

import pytest
import torch

from benchmarks.load import CandidateFinder, thresholds_by_rank
from benchmarks.processes import EngineProcess, Photograph, Setup
from tests.benchmarks.test_load import CONFIG, CPU, PIXELS, TINY, encoded


@pytest.fixture(scope="module")
def setup() -> Setup:
    candidates = CandidateFinder(6, CPU)(PIXELS)
    photograph = Photograph("astronaut", encoded(), PIXELS.shape[1], PIXELS.shape[0], candidates)
    config = replace(thresholds_by_rank(CONFIG, [candidates]), box_nms_thresh=0.9)
    return Setup(TINY, config, [photograph], CPU, repeats=1, transformers=False)


def test_engines_in_their_processes_find_as_many_masks(setup):
    with ExitStack() as stack:
        engines = {
            name: stack.enter_context(closing(EngineProcess(name, setup))) for name in ("segment_anything", "exact")
        }
        theirs, ours = (engine.measure(0) for engine in engines.values())
        assert engines["exact"].dtypes == {"encode": torch.float32, "prompt": torch.float32}
    assert ours.masks == theirs.masks > 5
    assert ours.milliseconds.keys() >= {"decode", "encode", "prompt", "filter", "rle", "write"}
    assert ours.left["candidates"] == 3 * 6 * 6 > ours.left["predicted_iou"] >= ours.masks
    assert min(ours.seconds, theirs.seconds) > 0


def test_an_engine_whose_process_ends_early_is_an_error(setup):
    with pytest.raises(EOFError):
        EngineProcess("slow", setup)
