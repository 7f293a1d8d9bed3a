"""How far a command is, in the log of a job."""

from __future__ import annotations

import pytest

from maskmill.jobs.progress import ProgressBar


def _lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_log_gets_a_line_with_how_far_it_is(capsys: pytest.CaptureFixture[str]):
    with ProgressBar("starting", "images", 4, line_seconds=0) as bar:
        bar.update(advance=1, description="generating", figures="70 masks")
        bar.print("maskmill: skipped: [1] of them")
        assert list(bar.track("ab")) == ["a", "b"]
    first, told, _, third = _lines(capsys)
    assert first.startswith("maskmill: generating 1 of 4 images, 0:00:00")
    assert first.endswith("  70 masks")
    assert told == "maskmill: skipped: [1] of them"
    assert third.startswith("maskmill: generating 3 of 4 images, 0:00:00, 0:00:0")


def test_total_that_is_not_known_yet_is_not_told(capsys: pytest.CaptureFixture[str]):
    with ProgressBar("verifying", "shards", line_seconds=0) as bar:
        bar.update(advance=1)
    assert _lines(capsys) == ["maskmill: verifying 1 shards, 0:00:00"]


def test_log_of_a_short_task_stays_empty(capsys: pytest.CaptureFixture[str]):
    with ProgressBar("comparing", "images", 2) as bar:
        list(bar.track("ab"))
    assert _lines(capsys) == []
