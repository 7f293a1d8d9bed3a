"""`maskmill train`: what it refuses. Training itself is tested in tests/model/training."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.cli import main


def test_train_is_refused_when_a_data_folder_holds_no_photographs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main(["train", str(tmp_path / "out"), "--data", str(empty)]) == 1
    assert "no .jpg files" in capsys.readouterr().err
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_train_is_refused_when_the_device_does_not_exist(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["train", str(tmp_path / "out"), "--device", "abacus"]) == 1
    assert "abacus" in capsys.readouterr().err
