"""`maskmill plan`: counts, and what a run will take, as text and as JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from maskmill.jobs.cli import main
from maskmill.pipeline.worker import run_local
from tests.fakes import picture
from tests.pipeline.sources import tar_bytes
from tests.runs import begin


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    for number in range(10):
        (tmp_path / "source" / f"{number}.png").write_bytes(picture(number))
    return tmp_path / "source"


@pytest.fixture
def former(source: Path, tmp_path: Path) -> str:
    """A run with 2 s for each shard of two images."""
    job, plan = begin(source, tmp_path / "former")
    times = iter(range(0, 1000, 2))
    run_local(replace(job, wall_clock=lambda: float(next(times))), plan, lambda _: None)
    return str(tmp_path / "former")


def report(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert main(["plan", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_plan_counts_when_nothing_is_measured(source: Path, capsys: pytest.CaptureFixture[str]):
    counted = report(capsys, str(source), "--images-per-shard", "4", "--exclude", "0.png")
    size = sum(path.stat().st_size for path in source.iterdir() if path.name != "0.png")
    assert counted == {
        "source": str(source),
        "kind": "folder",
        "images": 9,
        "images_are_estimated": False,
        "shards": 3,
        "bytes": size,
    }
    assert main(["plan", str(source)]) == 0
    assert "time      unknown: add --probe 64" in capsys.readouterr().out


def test_plan_takes_the_speed_from_a_former_run(source: Path, former: str, capsys: pytest.CaptureFixture[str]):
    options = [str(source), "--run", former, "--gpus", "2", "--price", "3", "--images-per-shard", "2"]
    planned = report(capsys, *options)
    assert planned["seconds_per_image"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert planned["seconds"]["mean"] == 5.0
    assert planned["gpu_hours"]["mean"] == pytest.approx(10 / 3600)
    assert planned["price"]["mean"] == pytest.approx(30 / 3600)
    assert (planned["masks_per_image"], planned["source_requests"]) == (3.0, 11)
    written = sum(path.stat().st_size for path in Path(former).glob("*/*.parquet"))
    assert planned["output_bytes"] == written
    assert main(["plan", *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "speed     1 (1 to 1) s per image on one worker" in lines
    assert "time      0:00:05 (0:00:05 to 0:00:05) with 2 workers" in lines
    assert "price     0.01 (0.01 to 0.01)" in lines


@pytest.mark.slow
def test_plan_probes_the_source_with_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "tars").mkdir()
    for tar in range(2):
        members = {f"{number}.png": picture(number) for number in range(3)}
        (tmp_path / "tars" / f"{tar}.tar").write_bytes(tar_bytes(members))
    planned = report(capsys, str(tmp_path / "tars"), "--probe", "4", "--device", "cpu")
    assert (planned["sample_images"], planned["sample_parts"]) == (4, 2)
    assert planned["images_are_estimated"]
    assert planned["images"] > 0
    assert 0 < planned["seconds_per_image"]["low"] <= planned["seconds_per_image"]["high"]
    assert planned["output_requests"] > 0
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "4"], "--gpus, --price and --save need a measured speed"),
        (["--price", "1"], "--gpus, --price and --save need a measured speed"),
        (["--save", "out"], "--gpus, --price and --save need a measured speed"),
        (["--probe", "1", "--run", "out"], "--probe and --run exclude each other"),
        (["--run", "nothing"], "not an output of maskmill"),
        (["--device", "tpu"], "no device 'tpu'"),
    ],
)
def test_wrong_options_are_one_line(
    source: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["plan", str(source), *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_run_without_times_is_no_measure(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    begin(source, tmp_path / "former")
    assert main(["plan", str(source), "--run", str(tmp_path / "former")]) == 1
    assert "no part of this run says how long it took" in capsys.readouterr().err


def test_status_says_how_wrong_the_plan_was_when_the_output_holds_it(
    source: Path, former: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = str(tmp_path / "out")
    options = ["--run", former, "--images-per-shard", "2"]
    assert main(["plan", str(source), *options, "--save", out]) == 0  # 1 s per image
    job, plan = begin(source, out)
    times = iter(range(0, 1000, 3))
    job = replace(job, wall_clock=lambda: float(next(times)))
    run_local(job, list(plan)[:2], lambda _: None)
    capsys.readouterr()
    assert main(["status", out]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "plan      1 s per image on one worker; it takes 1.5 s: 50 % more" in lines
    assert not any("it took" in line for line in lines), "the run is not finished"
    run_local(job, list(plan)[2:], lambda _: None)
    assert main(["status", out, "--json"]) == 0
    comparison = json.loads(capsys.readouterr().out)["comparison"]
    assert comparison["seconds_per_image"] == 1.5
    assert comparison["seconds"] == 27.0  # shards begin every 6 s, the last one takes 3 s
    assert comparison["estimate"]["seconds"]["mean"] == 10.0
    assert main(["status", out]) == 0
    assert "          0:00:10 with 1 worker; it took 0:00:27: 170 % more" in capsys.readouterr().out.splitlines()
    assert main(["verify", out]) == 0


def test_damaged_estimate_is_named(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    begin(source, tmp_path / "out")
    (tmp_path / "out" / "_estimate.json").write_text("{}")
    assert main(["status", str(tmp_path / "out")]) == 1
    assert "_estimate.json: damaged ('seconds_per_image'): delete it" in capsys.readouterr().err
