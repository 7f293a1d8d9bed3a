"""`maskmill retry`: what failed is done again, and nothing else changes."""

from pathlib import Path

import duckdb
import pytest

from maskmill.jobs.cli import main
from maskmill.jobs.generate import run_config
from maskmill.pipeline.ledger import Identity, open_run
from maskmill.pipeline.sources import open_source
from maskmill.pipeline.storage import open_storage
from tests.fakes import picture


@pytest.mark.ray
def test_retry_does_what_failed_and_nothing_else(
    photographs: Path, tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    (photographs / "bad.png").write_bytes(b"no image")
    arguments = ["--checkpoint", str(weights), "--device", "cpu"]
    shape = ["--points-per-side", "1", "--images-per-shard", "2"]
    assert main(["generate", str(photographs), str(out), *arguments, *shape]) == 0
    assert f"maskmill retry {out}" in capsys.readouterr().out
    before = {path.name: path.read_bytes() for path in (out / "masks").iterdir()}

    (photographs / "bad.png").write_bytes(picture(7))
    assert main(["retry", str(out), *arguments]) == 0
    assert "images    4 (4 ok, 0 failed)" in capsys.readouterr().out
    after = {path.name: path.read_bytes() for path in (out / "masks").iterdir()}
    assert after.keys() - before.keys() == {"part-00000-retry-1.parquet"}
    assert {name: after[name] for name in before} == before
    query = f"SELECT image_id, status FROM '{out}/images/*.parquet' ORDER BY image_id"
    assert duckdb.connect().execute(query).fetchall() == [
        ("bad.png", "ok"),
        ("p0.png", "ok"),
        ("p1.png", "ok"),
        ("p2.png", "ok"),
    ]
    assert main(["verify", str(out)]) == 0

    # Nothing is left to retry, and the run is as finished as before.
    assert main(["retry", str(out), *arguments]) == 0
    assert main(["generate", str(photographs), str(out), *arguments, *shape]) == 0
    assert {path.name for path in (out / "masks").iterdir()} == after.keys()


def test_retry_is_refused_when_the_weights_are_others(
    photographs: Path, tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
):
    source = open_source(str(photographs))
    identity = Identity(source.uri, "0" * 64, run_config("mini", None, {}, "exact"))
    open_run(open_storage(str(tmp_path / "out"), make=True), identity, source, images_per_shard=2)
    assert main(["retry", str(tmp_path / "out"), "--checkpoint", str(weights)]) == 1
    assert "made with other weights" in capsys.readouterr().err


def test_retry_is_refused_when_there_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["retry", str(tmp_path)]) == 1
    assert "not an output of maskmill" in capsys.readouterr().err


@pytest.mark.ray
def test_run_goes_on_with_images_that_have_moved(
    photographs: Path, tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
):
    out, new = str(tmp_path / "out"), str(tmp_path / "moved")
    arguments = ["--checkpoint", str(weights), "--device", "cpu"]
    generate = [*arguments, "--points-per-side", "1"]
    assert main(["generate", str(photographs), out, *generate, "--source", new]) == 1
    assert f"--source is for resuming a run, but {out} has no run: give {new} as SOURCE" in capsys.readouterr().err
    (photographs / "p1.png").write_bytes(b"no image")
    assert main(["generate", str(photographs), out, *generate]) == 0
    for table in ("masks", "images"):
        (tmp_path / "out" / table / "part-00000.parquet").unlink()
    photographs.rename(new)
    (tmp_path / "moved" / "p1.png").write_bytes(picture(1))
    (tmp_path / "moved" / "a.tar").touch()

    assert main(["generate", new, out, *generate]) == 1
    error = capsys.readouterr().err
    assert f'source is "{photographs}" there and "{new}" now' in error
    assert "If the images have moved, keep SOURCE and give their new place with --source" in error
    for command in (["generate", str(photographs), out, *generate], ["retry", out, *arguments]):
        assert main(command) == 1
        assert "if they have moved, give their new place with --source" in capsys.readouterr().err

    assert main(["generate", str(photographs), out, *generate, "--source", new]) == 0
    assert "images    3 (2 ok, 1 failed)" in capsys.readouterr().out
    assert main(["retry", out, *arguments, "--source", new]) == 0
    assert "images    3 (3 ok, 0 failed)" in capsys.readouterr().out
    assert main(["verify", out]) == 0
