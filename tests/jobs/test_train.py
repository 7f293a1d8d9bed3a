"""`maskmill train`: what it trains on, how it stops and goes on, what it refuses. The loop is tested in tests/model."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskmill.annotations import open_annotations
from maskmill.annotations.training import split_off
from maskmill.jobs.cli import main
from maskmill.model.checkpoint import read_checkpoint
from tests.annotations.writing import write_coco, write_label_maps, write_run


@pytest.mark.slow
def test_train_learns_from_every_format_and_goes_on_where_it_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    coco, run, maps = write_coco(tmp_path / "coco"), write_run(tmp_path / "run"), write_label_maps(tmp_path / "maps")
    command = ["train", str(out), "--data", str(coco), "--data", str(run), "--data-share", "1"]
    command += ["--validation", str(maps), "--device", "cpu"]
    assert main([*command, "--steps", "1"]) == 0
    assert "step      1 of " in capsys.readouterr().out
    assert read_checkpoint(out / "model.safetensors").metadata["data"] == "procedural scenes, instances.json, out"
    assert main([*command, "--steps", "1"]) == 0
    assert "was reached before" in capsys.readouterr().out
    assert main([*command, "--steps", "2"]) == 0
    assert "step      2 of " in capsys.readouterr().out
    for other in ([*command[:-6], "--device", "cpu"], [*command, "--seed", "1"]):
        assert main([*other, "--steps", "2"]) == 1
        assert "another recipe" in capsys.readouterr().err


@pytest.mark.slow
def test_train_draws_by_weight_and_holds_a_tenth_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        for number in range(30):
            pixels_HW3 = np.full((24, 32, 3), 8 * number, np.uint8)
            pixels_HW3[6:18, 8:24] = 255 - 8 * number
            map_HW = np.ones((24, 32), np.uint8)
            map_HW[6:18, 8:24] = 2
            Image.fromarray(pixels_HW3).save(tmp_path / folder / f"{number}.jpg")
            Image.fromarray(map_HW).save(tmp_path / folder / f"{number}.seg0.png")
    images = open_annotations(tmp_path / "one")
    ours, theirs = split_off(images)
    assert sorted(ours + theirs) == list(range(30))
    assert 0 < len(theirs) < 10
    assert split_off(open_annotations(tmp_path / "two")) == (ours, theirs)  # by the ids alone
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    command = ["train", str(tmp_path / "out"), "--data", f"{one}=2.5", "--data", two, "--validation", one]
    assert main([*command, "--steps", "1", "--data-share", "1", "--device", "cpu"]) == 0
    assert "step      1 of " in capsys.readouterr().out
    assert main(["train", str(tmp_path / "other"), "--data", f"{one}=0"]) == 1
    assert "a weight is a number above 0" in capsys.readouterr().err


@pytest.mark.slow
def test_train_saves_the_step_at_work_when_it_is_interrupted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    command = ["train", str(out), "--data", str(write_coco(tmp_path)), "--data-share", "1", "--device", "cpu"]

    def interrupt() -> None:
        while not out.exists():  # training has begun
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert main([*command, "--steps", "50"]) == 130
    thread.join()
    printed = capsys.readouterr()
    assert "stopped after step 1; run the same command again to resume" in printed.err
    assert not printed.out
    assert main([*command, "--steps", "1"]) == 0
    assert "was reached before" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "code", "reason"),
    [
        (["--data", "{empty}"], 1, "no annotations in this folder; expected photographs ID.jpg"),
        (["--data", "{coco}:{empty}"], 1, "its photographs, such as ü 1.jpg, are not in"),
        (["--validation", "{empty}/nowhere"], 1, "no such file or folder"),
        (["--device", "abacus"], 1, "abacus"),
        (["--model", "vit_x"], 1, "there is no model 'vit_x'; choose one of"),
        (["--model", "hiera_t"], 1, "maskmill train does not train hiera_t; choose one of mini, vit_b, vit_l"),
        (["--model", "vit_b", "--checkpoint", "embedded"], 1, "vit_b has no embedded weights"),
        (["--checkpoint", "{empty}/nowhere.pth"], 1, "nowhere.pth"),
        (["--data-share", "0.5"], 1, "--data-share needs --data"),
        (["--data", "{coco}", "--data-share", "1.5"], 2, "--data-share"),
        (["--steps", "1000000"], 1, "--steps 1000000: the training of mini ends at step"),
        (["--seed", "1000"], 2, "--seed"),  # its scenes are those held out
        (["--processes", "3"], 1, "--processes 3: must divide the 4 images of a step evenly"),
    ],
)
def test_train_is_refused_in_one_line_when_a_flag_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], code: int, reason: str
):
    empty = tmp_path / "empty"
    empty.mkdir()
    coco = write_coco(tmp_path)
    given = [flag.format(empty=empty, coco=coco) for flag in flags]
    assert main(["train", str(tmp_path / "out"), *given]) == code
    error = capsys.readouterr().err
    assert reason in error
    assert error.startswith("maskmill: error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
