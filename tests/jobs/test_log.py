"""The log on stderr, as text and as JSON lines."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from maskmill.jobs.cli import main
from maskmill.jobs.log import LogFormat, LogHandler, log
from maskmill.jobs.progress import ProgressBar
from tests.fakes import picture
from tests.runs import begin


@pytest.fixture
def json_lines() -> Iterator[None]:
    log.use(LogFormat.json, run="s3://bucket/out")
    yield
    log.use(LogFormat.text)


@pytest.fixture
def logger() -> logging.Logger:
    logger = logging.Logger("test")
    logger.addHandler(LogHandler())
    return logger


def warn_twice(logger: logging.Logger) -> None:
    for _ in range(2):
        logger.warning("%s is\nslow", "a.png", extra={"shard": "00007", "attempt": 2, "worker": "gpu-1:7"})


def test_equal_warnings_are_one_line_of_text(logger: logging.Logger, capsys: pytest.CaptureFixture[str]):
    warn_twice(logger)
    assert capsys.readouterr().err == "maskmill: warning: a.png is slow\n"


@pytest.mark.usefixtures("json_lines")
def test_warning_has_run_shard_attempt_and_worker_when_the_format_is_json(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str]
):
    warn_twice(logger)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert len(lines) == 2
    assert {name: value for name, value in lines[0].items() if name != "time"} == {
        "level": "warning",
        "message": "a.png is slow",
        "run": "s3://bucket/out",
        "shard": "00007",
        "attempt": 2,
        "worker": "gpu-1:7",
    }
    assert lines[0]["time"] <= lines[1]["time"]


@pytest.mark.usefixtures("json_lines")
def test_progress_is_a_json_line_with_counts(capsys: pytest.CaptureFixture[str]):
    with ProgressBar("generating", "images", 4, line_seconds=0) as bar:
        bar.update(advance=1)
    (line,) = map(json.loads, capsys.readouterr().err.splitlines())
    assert (line["level"], line["done"], line["total"], line["unit"]) == ("info", 1, 4, "images")
    assert line["message"].startswith("generating 1 of 4 images")


@pytest.mark.parametrize("command", ["generate", "retry"])
def test_error_of_a_command_is_a_json_line(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.png").write_bytes(picture(1))
    out = str(tmp_path / "out")
    begin(tmp_path / "source", out, weights="0" * 64)
    arguments = [str(tmp_path / "source"), out] if command == "generate" else [out]
    assert main([command, *arguments, "--log-format", "json"]) == 1
    (line,) = map(json.loads, capsys.readouterr().err.splitlines())
    assert (line["level"], line["run"]) == ("error", out)
    assert "weights" in line["message"]
    assert main([command, *arguments]) == 1
    assert capsys.readouterr().err.startswith("maskmill: error: "), "the next command has its own format"
