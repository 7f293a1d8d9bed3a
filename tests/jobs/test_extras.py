"""Commands that need an extra which is not installed."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from maskmill.jobs.extras import EXTRAS

PROJECT = Path(__file__).parents[2]
ARGUMENTS = {
    "demo": ["demo", "out"],
    "evaluate": ["evaluate", "--data", "x", "--out", "y"],
    "submit": ["submit", "/photographs", "/out"],
    "train": ["train", "out"],
    "view": ["view", "out"],
}
HIDE = {"torch.optim.Muon": "import torch; del torch.optim.Muon"}


@pytest.mark.parametrize(("extra", "missing"), [(extra, name) for extra, names in EXTRAS.items() for name in names])
def test_command_names_its_extra_when_something_of_it_is_missing(tmp_path: Path, extra: str, missing: str):
    hide = HIDE.get(missing, f"sys.modules[{missing!r}] = None")
    code = f"import sys; {hide}; from maskmill.jobs.cli import main; sys.exit(main({ARGUMENTS[extra]}))"
    environment = os.environ | {"PYTHONPATH": f"{PROJECT}/src"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    line = f"maskmill: error: maskmill {extra} needs {missing}: pip install 'maskmill[{extra}]'\n"
    assert (done.returncode, done.stderr) == (1, line)
    assert list(tmp_path.iterdir()) == []


def test_every_extra_for_users_is_known():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    assert set(project["optional-dependencies"]) - {"dev", "docs"} == set(EXTRAS)
