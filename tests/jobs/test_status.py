"""`maskmill status` prints how far a run is, as text and as JSON, from a folder and from S3."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from maskmill.jobs.cli import main
from maskmill.pipeline.worker import run_local
from tests.fakes import picture
from tests.runs import begin, run

if TYPE_CHECKING:
    from testing.s3_servers import MotoServer


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Five pictures. One cannot be decoded."""
    (tmp_path / "source").mkdir()
    for seed, name in enumerate("abcde"):
        (tmp_path / "source" / f"{name}.png").write_bytes(picture(seed) if name != "b" else b"no image")
    return tmp_path / "source"


def start(source: Path, out: str | Path) -> None:
    """A run with two of its three shards done, 50 s ago."""
    job, plan = begin(source, out)
    times = iter([1000.0, 1010.0, 1010.0, 1020.0])
    job = replace(job, wall_clock=lambda: next(times), worker_name=lambda: "gpu-1:7")
    run_local(job, list(plan)[:2], lambda _: None)


def test_status_of_a_run_in_progress_shows_shards_images_failures_and_workers(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    start(source, tmp_path / "out")
    assert main(["status", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:6] == [
        "shards    2 done, 1 left",
        "images    4 done (3 ok, 1 failed), 1 left",
        f"failures  decode: 1; 0 of them quarantined; see maskmill retry {tmp_path / 'out'}",
        "masks     9, 3.0 per image",
        "speed     0.00 images/s in the last ten minutes until now, 0 workers",
        "left      unknown",
    ]
    assert re.fullmatch(r"gpu-1:7  2       4       0.20      1970-01-01 \S+", lines[8])
    assert re.fullmatch(r"00000  2       1       1         gpu-1:7  1970-01-01 \S+", lines[11])


@pytest.mark.s3
def test_status_is_read_from_s3(
    source: Path, bucket: str, moto: MotoServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", moto.url)
    start(source, f"s3://{bucket}/out")
    assert main(["status", f"s3://{bucket}/out", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["out"] == f"s3://{bucket}/out"
    assert {name: report[name] for name in ("shards", "shards_done", "images", "images_done", "failed")} == {
        "shards": 3,
        "shards_done": 2,
        "images": 5,
        "images_done": 4,
        "failed": 1,
    }
    assert report["workers"] == [
        {"worker": "gpu-1:7", "parts": 2, "images": 4, "images_per_second": 0.2, "last_commit": 1020.0}
    ]
    assert [part["work"]["ended"] for part in report["parts"]] == [1010.0, 1020.0]


@pytest.mark.parametrize("options", [[], ["--watch"]])
def test_status_of_a_finished_run_says_so(
    source: Path, tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]
):
    run(source, tmp_path / "out")
    assert main(["status", str(tmp_path / "out"), *options]) == 0
    assert "left      nothing: the run is finished" in capsys.readouterr().out.splitlines()
    assert main(["status", str(tmp_path / "out"), "--json", *options]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["shards_done"], report["seconds_left"]) == (3, 0.0)


def test_long_tables_are_cut_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "source").mkdir()
    for number in range(23):
        (tmp_path / "source" / f"{number}.png").write_bytes(b"no image")
    run(tmp_path / "source", tmp_path / "out", images_per_shard=1)
    main(["status", str(tmp_path / "out")])
    assert capsys.readouterr().out.splitlines()[-1] == "... and 3 more: see --json"


def test_output_without_a_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["status", str(tmp_path / "out")]) == 1
    assert "not an output of maskmill" in capsys.readouterr().err


def test_damaged_part_is_named_in_one_line(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run(source, tmp_path / "out")
    (tmp_path / "out/masks/part-00001.parquet").write_bytes(b"PAR1")
    assert main(["status", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "masks/part-00001.parquet: damaged" in error
    assert error.count("\n") == 1
