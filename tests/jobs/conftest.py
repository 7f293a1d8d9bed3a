"""What the commands are tried on: three pictures, and a model that was never trained."""

from pathlib import Path

import pytest
import torch

from maskmill.model.checkpoint import save_checkpoint
from maskmill.model.families import VARIANTS
from maskmill.model.network import Network
from tests.fakes import picture


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for seed in range(3):
        (folder / f"p{seed}.png").write_bytes(picture(seed))
    return folder


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model `mini`, untrained."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "mini.safetensors"
    save_checkpoint(Network(VARIANTS["mini"]), path)
    return path
