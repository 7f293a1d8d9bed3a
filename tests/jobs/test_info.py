"""`maskmill info` tells what a checkpoint is."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from maskmill.jobs.info import info
from maskmill.model.checkpoint import embedded_checkpoint, save_checkpoint
from maskmill.model.errors import CheckpointError
from maskmill.model.families import VARIANTS
from maskmill.model.network import Network
from testing.networks import SMALL_CONFIGS, random_network

APP = typer.Typer()
APP.command("info")(info)


def test_info_shows_what_a_checkpoint_is(tmp_path: Path) -> None:
    network, path = Network(VARIANTS["mini"]), tmp_path / "mini.safetensors"
    save_checkpoint(network, path, {"steps": "1234"}, torch.float16)
    result = CliRunner().invoke(APP, [str(path)], catch_exceptions=False)
    assert result.exit_code == 0
    rows = {line.rstrip() for line in result.output.splitlines()}
    count = sum(parameter.numel() for parameter in network.parameters())
    for name, value in {
        "model": "mini",
        "layout": "maskmill",
        "stored as": "float16",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "input": "512 x 512 pixels",
        "all parts": f"{count:,} parameters",
        "steps": "1234",
    }.items():
        assert any(row.startswith(name) and row.endswith(f" {value}") for row in rows), name


def test_info_names_the_variant_when_the_file_is_one_of_sam2(tmp_path: Path) -> None:
    with torch.device("meta"):
        network = Network(VARIANTS["hiera_t"])
    path = tmp_path / "sam2.1_hiera_tiny.pt"
    # As published: under one key, with names of its own and weights for videos.
    state = {
        key.replace("prompt_encoder.", "sam_prompt_encoder.").replace("mask_decoder.", "sam_mask_decoder."): tensor
        for key, tensor in network.to_empty(device="cpu").state_dict().items()
    }
    torch.save({"model": state | {"maskmem_tpos_enc": torch.zeros(7, 1, 1, 64)}}, path)
    result = CliRunner().invoke(APP, [str(path)], catch_exceptions=False)
    rows = {line.rstrip() for line in result.output.splitlines()}
    for name, value in {"model": "hiera_t", "layout": "official", "all parts": "31,440,721 parameters"}.items():
        assert any(row.startswith(name) and row.endswith(f" {value}") for row in rows), name
    assert "sam2: predicted IoU > 0.8" in result.output


def test_info_says_what_is_embedded_when_no_file_is_named() -> None:
    result = CliRunner().invoke(APP, [], catch_exceptions=False)
    rows = {line.rstrip() for line in result.output.splitlines()}
    for name, value in {
        "model": "mini (embedded)",
        "terms": "non-commercial research",
        "sha256": hashlib.sha256(embedded_checkpoint("mini").read_bytes()).hexdigest(),
        "training data": "bsds500-train",
        "preset": "mini: predicted IoU > 0.2, stability score >= 0.2",
    }.items():
        assert any(row.startswith(name) and value in row for row in rows), name


def test_info_shows_the_path_as_it_is_when_it_has_brackets(tmp_path: Path) -> None:
    path = tmp_path / "[red]" / ":star:.safetensors"
    path.parent.mkdir()
    save_checkpoint(Network(VARIANTS["mini"]), path, {}, torch.float16)
    result = CliRunner().invoke(APP, [str(path)], catch_exceptions=False)
    assert str(path) in result.output.replace("\n", "").replace(" ", "")


def test_info_refuses_what_is_none_of_the_models(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save(random_network(SMALL_CONFIGS["grid7"]).state_dict(), path)
    with pytest.raises(CheckpointError, match="is not one of the models vit_b"):
        info(path)
