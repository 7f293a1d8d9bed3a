"""`maskmill preview` and `maskmill demo`: pictures of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from maskmill.jobs.cli import main
from tests.fakes import FAIL, picture
from tests.pipeline.test_sources import tar_bytes
from tests.pipeline.test_verify import rewrite, with_value
from tests.runs import run

if TYPE_CHECKING:
    from testing.s3_servers import MotoServer


def pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A run over a.png to c.png, of which b.png failed."""
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for seed, name in enumerate("abc"):
        (photographs / f"{name}.png").write_bytes(picture(seed, FAIL if name == "b" else (0, 0, 0)))
    run(photographs, tmp_path / "out")
    return tmp_path / "out"


def test_preview_draws_one_image_in_its_own_size(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["preview", str(out), "c.png", "--to", str(tmp_path / "c.png")]) == 0

    photograph, drawn = pixels(tmp_path / "photographs" / "c.png"), pixels(tmp_path / "c.png")
    assert drawn.shape == photograph.shape
    assert (drawn != photograph).any()
    assert "images    1, with 3 masks" in capsys.readouterr().out


def test_preview_makes_a_contact_sheet_of_what_is_done(out: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["preview", str(out)]) == 0

    assert pixels(out.parent / "preview.png").shape[1] > 500
    assert "images    2, with 6 masks" in capsys.readouterr().out


def test_preview_stops_at_the_limit(out: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["preview", str(out), "--limit", "1"]) == 0

    assert "images    1, with 3 masks" in capsys.readouterr().out


def test_preview_reads_images_from_tars(tmp_path: Path):
    (tmp_path / "photographs.tar").write_bytes(tar_bytes({"a.png": picture(1), "b.png": picture(2)}))
    run(tmp_path / "photographs.tar", tmp_path / "out")

    assert main(["preview", str(tmp_path / "out"), "photographs.tar/b.png", "--to", str(tmp_path / "b.png")]) == 0

    (tmp_path / "original.png").write_bytes(picture(2))
    assert pixels(tmp_path / "b.png").shape == pixels(tmp_path / "original.png").shape


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["b.png"], "no masks of b.png"),
        (["a.png", "nowhere.png"], "no masks of nowhere.png"),
        (["a.png", "--to", "picture.txt"], "picture.txt: cannot write a picture there"),
    ],
)
def test_preview_says_in_one_line_what_is_wrong(
    out: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
):
    assert main(["preview", str(out), *arguments]) == 1

    stderr = capsys.readouterr().err
    assert message in stderr
    assert stderr.count("\n") == 1


def test_preview_refuses_when_the_source_is_gone(out: Path, capsys: pytest.CaptureFixture[str]):
    (out.parent / "photographs" / "a.png").unlink()

    assert main(["preview", str(out), "a.png"]) == 1

    assert "a.png" in capsys.readouterr().err


def test_preview_draws_images_that_have_moved(out: Path, capsys: pytest.CaptureFixture[str]):
    (out.parent / "photographs").rename(out.parent / "moved")

    assert main(["preview", str(out)]) == 1
    assert "photographs: the images of the run are no longer there" in capsys.readouterr().err

    assert main(["preview", str(out), "--source", str(out.parent / "moved")]) == 0
    assert "images    2, with 6 masks" in capsys.readouterr().out


@pytest.mark.s3
def test_preview_goes_to_the_working_directory_when_the_run_is_in_s3(
    out: Path,
    tmp_path: Path,
    moto: MotoServer,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", moto.url)
    run(out.parent / "photographs", f"s3://{bucket}/runs/out")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    assert main(["preview", f"s3://{bucket}/runs/out"]) == 0

    assert [path.name for path in (tmp_path / "here").iterdir()] == ["preview.png"]
    assert f"picture   {tmp_path}/here/preview.png\n" in capsys.readouterr().out


def test_preview_says_once_what_is_wrong_with_a_damaged_mask(out: Path, capsys: pytest.CaptureFixture[str]):
    part = out / "masks/part-00000.parquet"
    rewrite(part, lambda table: with_value(table, "rle_counts", 0, b""))

    assert main(["preview", str(out), "a.png"]) == 1

    assert capsys.readouterr().err == (
        "maskmill: error: a.png: these counts are no mask: the RLE is empty or has characters that are not COCO's\n"
    )


def test_preview_names_a_damaged_part(out: Path, capsys: pytest.CaptureFixture[str]):
    part = out / "masks/part-00000.parquet"
    part.write_bytes(part.read_bytes()[:100])

    assert main(["preview", str(out)]) == 1

    error = capsys.readouterr().err
    assert error.startswith(f"maskmill: error: {part}: damaged: ")
    assert error.count("\n") == 1


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_demo_makes_tables_and_a_picture_of_each_photograph(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["demo", str(tmp_path)]) == 0

    printed = capsys.readouterr().out
    assert "images    6 (6 ok, 0 failed)" in printed
    assert printed.splitlines()[-1].startswith("weights   non-commercial research")
    photographs = sorted(path.stem for path in (tmp_path / "photographs").iterdir())
    assert sorted(path.stem for path in (tmp_path / "overlays").iterdir()) == photographs
    assert main(["verify", str(tmp_path / "tables")]) == 0
    for photograph in (tmp_path / "photographs").iterdir():
        before, after = pixels(photograph), pixels(tmp_path / "overlays" / f"{photograph.stem}.png")
        # Objects are outlined: a good part of every photograph is covered.
        assert (before != after).any(axis=-1).mean() > 0.2
