"""Replayed masks: every engine gets the same, by the same rules."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from torch import Tensor

from benchmarks import peers
from benchmarks.load import CandidateFinder, Candidates, Replay, ReplayedNetwork, thresholds_by_rank
from maskmill.model.checkpoint import build_network, load_model, read_checkpoint
from maskmill.model.embedding import ImageEmbedding
from maskmill.model.families import VARIANTS
from maskmill.model.families.sam1.config import SamConfig
from maskmill.model.mask_decoder import DecodedPrompts
from maskmill.model.network import Network
from maskmill.model.optimize import optimize
from maskmill.pipeline.config import GeneratorConfig
from testing.hugging_face import random_hugging_face
from testing.networks import SMALL_SAM2_CONFIGS, random_network

CPU = torch.device("cpu")
# As published, and with masks as large as mini's, so that nothing is resized.
TINY = SamConfig(
    "tiny",
    encoder_width=32,
    encoder_depth=2,
    encoder_heads=2,
    global_attention_blocks=(1,),
    image_size=512,
    embed_dim=32,
    decoder_mlp_dim=64,
)
CONFIG = GeneratorConfig(points_per_side=6, points_per_batch=16)
PIXELS = skimage.data.astronaut()[:300, :400]


@pytest.fixture(scope="module")
def candidates() -> Candidates:
    return CandidateFinder(6, CPU)(PIXELS)


@pytest.fixture
def replay(candidates: Candidates) -> Replay:
    replay = Replay(TINY, CPU)
    replay.show(candidates)
    return replay


def encoded() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "PNG")
    return buffer.getvalue()


def test_thresholds_let_the_wanted_shares_pass(candidates):
    config = thresholds_by_rank(CONFIG, [candidates])
    assert candidates.prompts_passing(config.pred_iou_thresh) == pytest.approx(0.6, abs=0.02)
    keep_NM = (candidates.predicted_iou_NM > config.pred_iou_thresh) & (
        candidates.stability_scores(config.stability_score_offset) >= config.stability_score_thresh
    )
    assert keep_NM.float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert CONFIG.box_nms_thresh <= config.box_nms_thresh <= 1


def test_random_network_has_the_masks_of_mini_when_they_are_replayed(candidates, replay):
    config = thresholds_by_rank(CONFIG, [candidates])
    mini = peers.Maskmill(optimize(load_model("mini", None).network, "exact", "cpu"), None, config)
    replayed = peers.Maskmill(optimize(random_network(TINY), "exact", "cpu"), replay, config)
    masks = replayed(encoded())
    assert len(masks) > 10
    assert masks == mini(encoded())
    assert replayed.timer.milliseconds.keys() >= {"decode", "encode", "prompt", "filter", "rle"}


def test_peers_have_the_same_masks_when_they_are_replayed(candidates, replay, tmp_path: Path):
    theirs_network = random_hugging_face(TINY)
    theirs_network.save_pretrained(tmp_path)
    network = build_network(TINY, read_checkpoint(tmp_path / "model.safetensors"))
    # Sooner than with the shares above, NMS removes something.
    config = replace(thresholds_by_rank(CONFIG, [candidates]), box_nms_thresh=0.9)
    published = peers.segment_anything(network, CPU, replay)(config)(encoded())
    theirs = peers.transformers(theirs_network, TINY.image_size, CPU, replay)(config)(encoded())
    ours = peers.Maskmill(optimize(network, "exact", "cpu"), replay, config)(encoded())
    compat = peers.compat(network, CPU, replay)(config)(encoded())
    assert len(ours) > 5
    assert ours == published
    assert ours == compat
    assert ours == theirs


def test_sam2_has_the_same_masks_when_they_are_replayed(candidates):
    from testing.sam2_oracles import published_sam2

    # The mask side of mini's logits of the photograph, so that little is resized.
    variant = replace(SMALL_SAM2_CONFIGS["grid6"], image_size=512)
    network, replay = random_network(variant), Replay(variant, CPU)
    replay.show(candidates)
    config = replace(thresholds_by_rank(CONFIG, [candidates]), box_nms_thresh=0.9)
    published = peers.sam2(published_sam2(variant), CPU, replay)(config)(encoded())
    ours = peers.Maskmill(optimize(network, "exact", "cpu"), replay, config)(encoded())
    assert len(ours) > 5
    assert ours == published


def test_mobile_sam_has_the_same_masks_when_they_are_replayed(candidates):
    variant = replace(VARIANTS["vit_t"], image_size=512)
    network, replay = random_network(variant), Replay(variant, CPU)
    replay.show(candidates)
    config = replace(thresholds_by_rank(CONFIG, [candidates]), box_nms_thresh=0.9)
    published = peers.segment_anything(network, CPU, replay)(config)(encoded())
    ours = peers.Maskmill(optimize(network, "exact", "cpu"), replay, config)(encoded())
    assert len(ours) > 5
    assert ours == published


class CountingSam(Network):
    """Counts the masks that are asked of it."""

    masks = 0

    def decode_masks(self, decoded: DecodedPrompts, keep_NM: Tensor) -> Tensor:
        self.masks += int(keep_NM.sum())
        return super().decode_masks(decoded, keep_NM)


def test_network_upscales_what_passes_in_the_replay(candidates, replay):
    counting = CountingSam(TINY)
    network = ReplayedNetwork(counting, replay)
    grid = (torch.arange(6) + 0.5) / 6
    points_N2 = torch.cartesian_prod(grid, grid).flip(1) * torch.tensor([512, 384])  # 400 x 300, resized to 512
    with torch.inference_mode():
        decoded = network.decode_points(ImageEmbedding(torch.zeros(1, 32, 32, 32)), points_N2)
        keep_NM = decoded.predicted_iou_NM > 0.4
        keep_NM[:, 0] = False
        logits_Khw = network.decode_masks(decoded, keep_NM)
    expected_NM = candidates.predicted_iou_NM > 0.4
    assert np.array_equal(keep_NM[:, 1:], expected_NM)
    assert counting.masks == len(logits_Khw) == int(expected_NM.sum()) > 0
    assert torch.equal(logits_Khw, candidates.logits_NMhw[expected_NM])
