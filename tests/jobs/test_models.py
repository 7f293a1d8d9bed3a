"""`maskmill models` lists every model with its size, terms and checkpoint."""

from __future__ import annotations

import typer
from typer.testing import CliRunner

from maskmill.jobs.models import models
from maskmill.model.families import FAMILIES

APP = typer.Typer()
APP.command("models")(models)


def test_models_lists_every_model_with_its_size_and_checkpoint() -> None:
    result = CliRunner().invoke(APP, [], catch_exceptions=False)
    assert result.exit_code == 0
    lines = result.output.splitlines()
    rows = {line.split()[0]: line for line in lines if line}
    for family in FAMILIES.values():
        assert f"weights: {family.terms}; {family.source}" in lines
        for config in family.variants:
            assert f"{config.image_size} x {config.image_size}" in rows[config.name]
            assert family.checkpoints.get(config.name, "none published") in rows[config.name]
    assert "9.8 M" in rows["vit_t"]
    assert "93.7 M" in rows["vit_b"]
