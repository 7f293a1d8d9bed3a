"""`maskmill verify` prints what is wrong, counts, and tells by its exit code."""

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from maskmill.jobs.verify import verify
from maskmill.pipeline.errors import RunMismatchError
from tests.fakes import picture
from tests.runs import run

APP = typer.Typer()
APP.command("verify")(verify)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A run over three pictures, one of which cannot be decoded, in two shards."""
    (tmp_path / "photographs").mkdir()
    for seed, name in enumerate("abc"):
        (tmp_path / "photographs" / f"{name}.png").write_bytes(picture(seed) if name != "b" else b"no image")
    run(tmp_path / "photographs", tmp_path / "out")
    return tmp_path / "out"


def test_verify_exits_with_0_when_nothing_is_wrong(out: Path):
    result = CliRunner().invoke(APP, [str(out)], catch_exceptions=False)
    assert result.output == "2 of 2 shards, 3 images (1 failed), 6 masks: nothing wrong\n"
    assert result.exit_code == 0


def test_verify_prints_the_first_offences_and_exits_with_1_when_there_are_any(out: Path):
    for name in ("b", "a", "[red]c"):
        (out / name).write_bytes(b"")
    (out / "masks/part-00000.parquet").unlink()
    result = CliRunner().invoke(APP, [str(out), "--limit", "3"], catch_exceptions=False)
    assert result.output.splitlines() == [
        "[red]c: does not belong to the run",
        "a: does not belong to the run",
        "b: does not belong to the run",
        "... and 2 more",
        "1 of 2 shards, 1 images (0 failed), 3 masks: 5 wrong",
    ]
    assert result.exit_code == 1


def test_verify_raises_when_there_is_no_run(tmp_path: Path):
    with pytest.raises(RunMismatchError, match="not an output of maskmill"):
        CliRunner().invoke(APP, [str(tmp_path)], catch_exceptions=False)
