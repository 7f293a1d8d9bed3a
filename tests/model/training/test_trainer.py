"""The training loop: it learns, it resumes, it leaves a checkpoint."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import distributed
from torch.multiprocessing.spawn import spawn

from maskmill.model.checkpoint import read_checkpoint, save_checkpoint
from maskmill.model.errors import CheckpointError
from maskmill.model.families import VARIANTS
from maskmill.model.families.mini.efficientnet_lite import fold_published
from maskmill.model.training.augment import fit
from maskmill.model.training.data import LabelledImage, TrainingDataError
from maskmill.model.training.initialise import load_resized
from maskmill.model.training.recipe import Stage, TrainingConfig, choose_recipe
from maskmill.model.training.samples import COLOURS, draw_answers
from maskmill.model.training.scenes import Scenes
from maskmill.model.training.session import Session, measure_and_draw, read_start, run
from maskmill.model.training.trainer import Trainer
from testing.networks import random_network
from tests.model.training.tiny import (
    PUBLISHED,
    TINY,
    TINY_TRUNK,
    TWO_STAGES,
    OneImage,
    published_trunk,
    squares,
)


def _trainer(recipe: TrainingConfig = TWO_STAGES) -> Trainer:
    return Trainer(TINY, recipe, Scenes(recipe.scene_count, 0, recipe.scene_side), [])


def test_loss_falls_by_a_quarter_when_there_is_one_picture_to_learn():
    recipe = dataclasses.replace(
        TWO_STAGES, stages=(Stage(128, 120, images=2, clicks=8, boxes=2, learning_rates=(3e-3, 3e-4)),), warmup_steps=10
    )
    trainer = Trainer(TINY, recipe, OneImage(squares()), [])
    masks = [losses["masks"] for losses in trainer.run()]
    assert sum(masks[-10:]) < 0.75 * sum(masks[:10])


def test_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path: Path):
    whole = _trainer()
    list(whole.run())
    for stop in (2, 3):  # within a stage, and between two
        first, second = _trainer(), _trainer()
        list(first.run(until=stop))
        first.save(tmp_path / "run.pt")
        second.load(tmp_path / "run.pt")
        assert second.step == stop
        list(second.run())
        expected = whole.averaged_network().state_dict()
        for name, value in second.averaged_network().state_dict().items():
            assert torch.equal(value, expected[name]), name


def test_later_stages_have_larger_inputs_and_second_clicks():
    trainer = _trainer()
    losses = list(trainer.run())
    assert trainer.image_size == 128
    assert ["second" in row for row in losses] == [False] * 3 + [True] * 3


def test_run_is_refused_when_the_recipe_is_another(tmp_path: Path):
    _trainer().save(tmp_path / "run.pt")
    with pytest.raises(TrainingDataError, match="another recipe"):
        _trainer(dataclasses.replace(TWO_STAGES, weight_decay=0.1)).load(tmp_path / "run.pt")


def test_run_is_refused_when_the_model_is_another(tmp_path: Path):
    _trainer().save(tmp_path / "run.pt")
    wider = Trainer(dataclasses.replace(TINY, decoder_mlp_dim=32), TWO_STAGES, OneImage(squares()), [])
    with pytest.raises(TrainingDataError, match="another model"):
        wider.load(tmp_path / "run.pt")


def test_run_is_refused_when_it_started_from_another_checkpoint(tmp_path: Path):
    starts = [random_network(TINY, seed).state_dict() for seed in (1, 2)]
    first, again, other = (
        Trainer(TINY, TWO_STAGES, OneImage(squares()), [], start=starts[which]) for which in (0, 0, 1)
    )
    first.save(tmp_path / "run.pt")
    again.load(tmp_path / "run.pt")
    for trainer in (other, _trainer()):
        with pytest.raises(TrainingDataError, match="another checkpoint"):
            trainer.load(tmp_path / "run.pt")


def test_resized_weights_differ_only_in_the_position_table():
    trainer = _trainer()
    small, large = trainer.averaged_network(64), trainer.averaged_network(128)
    changed = [k for k, v in small.state_dict().items() if not torch.equal(v, large.state_dict()[k])]
    assert changed == ["image_encoder.pos_embed"]
    assert large.state_dict()[changed[0]].shape == (1, 8, 8, 64)
    back = load_resized(small.config, small.state_dict())
    assert torch.equal(back.image_encoder.get_parameter("pos_embed"), small.image_encoder.get_parameter("pos_embed"))


def test_session_goes_on_where_it_stopped_and_leaves_a_checkpoint(tmp_path: Path):
    session = Session(tmp_path / "run", TINY, TWO_STAGES, {"photographs": OneImage(squares())})
    assert [state.step for state in run(session, until=2)] == [1, 2]
    assert [state.step for state in run(session)] == [3, 4, 5, 6]
    checkpoint = read_checkpoint(tmp_path / "run" / "model.safetensors")
    assert checkpoint.metadata["variant"] == "tiny"
    assert checkpoint.metadata["data"] == "procedural scenes, photographs"
    assert json.loads(checkpoint.metadata["recipe"])["weight_decay"] == TWO_STAGES.weight_decay
    assert checkpoint.stored_dtype == torch.float16


def test_session_that_is_closed_keeps_the_step_it_has_done(tmp_path: Path):
    session = Session(tmp_path / "run", TINY, TWO_STAGES)
    states = run(session)
    assert next(states).step == 1
    states.close()
    assert [state.step for state in run(session, until=2)] == [2]


def test_crops_without_a_label_are_drawn_again():
    speck = LabelledImage(np.zeros((64, 64, 3), np.uint8), np.zeros((1, 64, 64), np.int32))
    speck.maps_AHW[0, 60:, 60:] = 1
    nothing = LabelledImage(speck.pixels_HW3, np.zeros((1, 64, 64), np.int32))
    recipe = dataclasses.replace(TWO_STAGES, photograph_share=1.0)
    for image in (speck, nothing):
        trainer = Trainer(TINY, recipe, Scenes(2, 0, 64), [OneImage(image)])
        assert len(list(trainer.run())) == recipe.total_steps


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "start", [{"from_checkpoint": False}, {"from_checkpoint": True}, {"from_checkpoint": True, "from_trunk": True}]
)
def test_recipe_ends_at_the_input_size_of_its_model(variant: str, start: dict[str, bool]):
    recipe = choose_recipe(VARIANTS[variant], **start)
    assert recipe.stages[-1].image_size == VARIANTS[variant].image_size
    assert recipe.total_steps == sum(stage.steps for stage in recipe.stages)
    assert recipe.stage_at(recipe.total_steps - 1) == (len(recipe.stages) - 1, recipe.stages[-1])


def test_published_architecture_trains_through_all_stages_and_keeps_its_position_tables():
    trainer = Trainer(PUBLISHED, TWO_STAGES, OneImage(squares()), [])
    assert len(list(trainer.run())) == 6
    assert trainer.averaged_network().state_dict()["image_encoder.blocks.0.attn.rel_pos_h"].shape == (15, 32)


def test_run_from_a_checkpoint_starts_with_its_weights(tmp_path: Path):
    network = random_network(TINY)
    save_checkpoint(network, tmp_path / "start.safetensors")
    session = Session(tmp_path / "run", TINY, TWO_STAGES, checkpoint=tmp_path / "start.safetensors")
    first = Trainer(TINY, TWO_STAGES, OneImage(squares()), [], start=network.state_dict())
    assert torch.equal(first.averaged_network().mask_decoder.iou_token.weight, network.mask_decoder.iou_token.weight)
    assert [state.step for state in run(session, until=1)] == [1]
    after = read_checkpoint(tmp_path / "run" / "model.safetensors").state["mask_decoder.iou_token.weight"]
    # A step of the warm-up moves a weight by less than this; another start would be far away.
    assert (after - network.mask_decoder.iou_token.weight).abs().max() < 2e-3


def test_run_leaves_a_share_of_the_weights_it_started_from(tmp_path: Path):
    network = random_network(TINY)
    alone, mixed = (
        Trainer(TINY, recipe, OneImage(squares()), [], start=network.state_dict())
        for recipe in (TWO_STAGES, dataclasses.replace(TWO_STAGES, start_share=0.25))
    )
    for trainer in (alone, mixed):
        list(trainer.run())
    ends = alone.averaged_network().state_dict()
    for name, parameter in mixed.averaged_network().named_parameters():
        torch.testing.assert_close(parameter, 0.75 * ends[name] + 0.25 * network.state_dict()[name])


def test_run_from_a_trunk_starts_as_the_trunk_and_with_the_decoder_of_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    published = published_trunk()
    package = tmp_path / "packages" / "efficientnet_tiny_pytorch_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").touch()
    torch.save(published, package / "models" / "tiny.pth")
    monkeypatch.syspath_prepend(str(package.parent))
    decoder = random_network(dataclasses.replace(TINY, encoder_width=32, encoder_heads=1))
    save_checkpoint(decoder, tmp_path / "start.safetensors")
    start = read_start(TINY, tmp_path / "start.safetensors", "efficientnet-tiny")
    network = Trainer(TINY, TWO_STAGES, OneImage(squares()), [], start=start).averaged_network()
    for name, tensor in fold_published(TINY_TRUNK, published).items():
        assert torch.equal(network.state_dict()[f"image_encoder.trunk.{name}"], tensor), name
    for name, tensor in decoder.mask_decoder.state_dict().items():
        assert torch.equal(network.mask_decoder.state_dict()[name], tensor), name
    # All that is new learns, though it adds nothing yet.
    embedding = network.encode_images(torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0)))
    assert not any(skip.any() for skip in embedding.skips)
    (embedding.grid_BCYX.square().mean() + sum(skip.sum() for skip in embedding.skips)).backward()
    for name in ("blocks.0.mlp.lin2.weight", "top_down.1.skip.weight", "lateral_32.weight", "trunk.stem.weight"):
        gradient = network.get_parameter(f"image_encoder.{name}").grad
        assert gradient is not None
        assert gradient.abs().max() > 0, name


def test_trunk_or_decoder_of_another_model_is_refused_in_one_line(tmp_path: Path):
    other = (TINY_TRUNK[0], dataclasses.replace(TINY_TRUNK[1], expansion=3), *TINY_TRUNK[2:])
    with pytest.raises(CheckpointError, match=r"not the weights of this trunk: stages\.1\.0\.expand\.weight is"):
        fold_published(other, published_trunk())
    with pytest.raises(CheckpointError, match="not the weights of this trunk: _conv_stem"):
        fold_published(TINY_TRUNK, {"model": torch.zeros(1)})
    with pytest.raises(TrainingDataError, match=r"pip install 'maskmill\[train\]'"):
        read_start(TINY, None, "efficientnet-unknown")


def test_held_out_images_are_measured_and_drawn(tmp_path: Path):
    figures = measure_and_draw(_trainer(), {"squares": OneImage(squares()), "scenes": Scenes(5, 7, 64)}, tmp_path)
    assert figures["squares"]["prompts"] == 3
    assert all(0 < value < 1 for name, value in figures["scenes"].items() if name.startswith("one_click"))
    sides = {}
    for name in figures:
        sheet = cv2.imread(str(tmp_path / f"step-00000-{name}.png"))
        assert sheet is not None
        sides[name] = sheet.shape[:2]
    assert sides == {"squares": (64, 64), "scenes": (128, 256)}


def test_sheet_outlines_the_mask_of_each_click():
    network = random_network(TINY)
    picture = draw_answers(network, squares())
    plain = fit(squares(), TINY.image_size).pixels_SS3
    assert (picture != plain).any()
    # Three segments, three colours of clicks and outlines.
    drawn = {tuple(colour) for colour in picture[(picture != plain).any(axis=2)].tolist()}
    assert drawn == set(COLOURS[:3])


def test_processes_share_the_images_of_a_step(tmp_path: Path):
    alone, shared = (Session(tmp_path / name, TINY, TWO_STAGES, processes=n) for name, n in (("one", 1), ("two", 2)))
    losses = [[state.losses["masks"] for state in run(session, until=2)] for session in (alone, shared)]
    assert len(losses[1]) == 2
    # The leader of two has seen another half of the images than the process that has them all.
    assert losses[0] != losses[1]
    assert read_checkpoint(tmp_path / "two" / "model.safetensors").metadata["step"] == "2"


def _train_as(rank: int, folder: Path) -> None:
    """One of two processes that share the steps; leaves its losses and the state of its run."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    trainer = _trainer()
    losses = list(trainer.run(until=2))
    trainer.save(folder / f"{rank}.pt")
    (folder / f"{rank}.json").write_text(json.dumps(losses))
    distributed.destroy_process_group()


def test_processes_have_the_same_weights_after_each_step_though_they_see_other_images(tmp_path: Path):
    spawn(_train_as, (tmp_path,), nprocs=2)
    losses = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert losses[0] != losses[1]
    leader, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True)["learner"] for rank in (0, 1))
    assert leader["affinity_scale"].tolist() != [8, -4], "it has no weight decay: only gradients move it"
    for name, tensor in leader.items():
        assert torch.equal(tensor, other[name]), name


def test_learning_rate_warms_up_and_falls_within_each_stage():
    rates = [TWO_STAGES.learning_rate(step) for step in range(6)]
    assert rates == pytest.approx(
        [5e-4, (1 - 1 / 6) * 1e-3, (1 - 2 / 6) * 1e-3, 5e-4, 5e-4 - 4e-4 / 3, 5e-4 - 8e-4 / 3]
    )
