"""The examples run, and show something."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.fakes import picture
from tests.runs import run

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[1] / "examples"


SCRIPTS = {
    "everything": "masks.png",
    "one_object": "object.png",
    "read_run": "run.png",
    "from_segment_anything": None,
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_runs(script: str, tmp_path: Path):
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "a.png").write_bytes(picture(0))
    run(tmp_path / "photographs", tmp_path / "out")
    command = [sys.executable, EXAMPLES / f"{script}.py", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "predicted IoU" in done.stdout
    if written := SCRIPTS[script]:
        assert np.asarray(Image.open(tmp_path / written)).std() > 0


def test_every_script_is_run():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == SCRIPTS.keys()


@pytest.mark.ray
def test_notebook_runs_from_its_first_cell_to_its_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    notebook = json.loads((EXAMPLES / "quickstart.ipynb").read_text())
    assert notebook["nbformat"] == 4
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    names: dict[str, Any] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []  # pictures would be in every clone
            source = "".join(cell["source"])
            if source.startswith("!"):  # a command line, as IPython takes it
                subprocess.run(source[1:], shell=True, check=True)
            else:
                exec(compile(source, "quickstart.ipynb", "exec"), names)
    assert list(names["run"]) == ["chelsea.jpg", "coffee.jpg"]
    assert names["image"].status == "ok"
    assert len(names["masks"]) > 0
