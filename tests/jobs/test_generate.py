"""`maskmill generate`: what the flags mean, what is refused, and the whole way on Ray."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import numpy as np
import pytest
from PIL import Image

from maskmill.jobs.cli import main
from maskmill.jobs.generate import decoding_config, run_config
from maskmill.jobs.run import run_job
from maskmill.pipeline.config import PRESETS, DecodingConfig, RunConfig, ValueRange
from maskmill.pipeline.errors import ConfigError
from maskmill.pipeline.finished import open_finished_run
from maskmill.pipeline.job import Job
from maskmill.pipeline.ledger import Identity, open_run
from maskmill.pipeline.plan import Plan, shard_size
from maskmill.pipeline.sources import open_source
from maskmill.pipeline.storage import open_storage
from maskmill.pipeline.worker import run_local
from tests.fakes import FROZEN, HANG_ONCE, FakeEngine, picture
from tests.pipeline.sources import tar_bytes
from tests.runs import begin, run
from tests.tiffs import noise, write

if TYPE_CHECKING:
    from testing.s3_servers import MotoServer

# What the flags mean.


@pytest.mark.parametrize(
    ("model", "preset"), [("mini", "mini"), ("vit_b", "official"), ("vit_h", "official"), ("hiera_t", "sam2")]
)
def test_preset_is_the_models_own_when_none_is_given(model: str, preset: str):
    assert run_config(model, None, {}, "exact") == RunConfig(model, preset, PRESETS[preset])


def test_overrides_change_the_preset():
    config = run_config("mini", "sa1b", {"points_per_side": 16}, "fast")
    assert config.preset == "sa1b"
    assert config.precision == "fast"
    assert config.generator.points_per_side == 16
    assert config.generator.crop_n_layers == PRESETS["sa1b"].crop_n_layers


@pytest.mark.parametrize(
    ("model", "preset", "overrides", "precision", "message"),
    [
        ("vit_x", None, {}, "exact", "no model 'vit_x'; choose one of .*vit_b"),
        ("mini", "best", {}, "exact", "no preset 'best'; choose one of .*sa1b"),
        ("mini", None, {}, "bf16", "no precision 'bf16'; choose exact, fast or half"),
        ("mini", None, {"stability_score_thresh": 7}, "exact", "stability_score_thresh"),
        ("mini", None, {"min_mask_region_area_in": "cells"}, "exact", "min_mask_region_area_in is 'cells'"),
        ("efficient_sam_ti", None, {"use_m2m": True}, "exact", "efficient_sam_ti takes no masks as prompts"),
    ],
)
def test_configuration_is_refused_by_name(model: str, preset: str, overrides: dict, precision: str, message: str):
    with pytest.raises(ConfigError, match=message):
        run_config(model, preset, overrides, precision)


def test_flags_say_how_images_are_decoded():
    assert decoding_config(None, None, None) == DecodingConfig()
    expected = DecodingConfig(10**9, (4, 3, 2), ValueRange(2, 98, percentiles=True))
    assert decoding_config("4,3,2", "2%,98%", 10**9) == expected


@pytest.mark.parametrize(("images", "size"), [(1, 1), (40, 1), (320, 10)])
def test_small_sources_are_spread_over_shards(tmp_path: Path, images: int, size: int):
    for number in range(images):
        (tmp_path / f"{number}.jpg").touch()
    assert shard_size(open_source(str(tmp_path))) == size


# What is refused.


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--device", "tpu"], "no device 'tpu'"),
        (["--preset", "best"], "no preset 'best'"),
        (["--model", "vit_b"], "vit_b has no embedded weights"),
        (["--checkpoint", "/no/such/file"], "/no/such/file"),
        (["--bands", "0,1,2"], "'0,1,2' are no bands"),
        (["--value-range", "9,3"], "the value range 9,3 is empty"),
        (["--labels", "spot"], "--labels 'spot': write KEY=VALUE"),
    ],
)
def test_nothing_is_written_when_a_flag_is_wrong(
    photographs: Path, tmp_path: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["generate", str(photographs), str(tmp_path / "out"), *flags]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_folder_with_other_things_is_refused_as_output(
    photographs: Path, tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("dear to somebody")
    assert main(["generate", str(photographs), str(tmp_path / "out"), "--checkpoint", str(weights)]) == 1
    assert "thesis.txt" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:10001"])
def test_cluster_that_cannot_be_reached_is_named(
    photographs: Path, tmp_path: Path, weights: Path, address: str, capsys: pytest.CaptureFixture[str]
):
    out = str(tmp_path / "out")
    assert main(["generate", str(photographs), out, "--checkpoint", str(weights), "--address", address]) == 1
    assert address in capsys.readouterr().err.splitlines()[-1]


# The whole way.


@pytest.mark.ray
def test_generate_goes_from_images_to_tables(
    photographs: Path, tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
):
    (photographs / "bad.png").write_bytes(b"no image")
    command = ["generate", str(photographs), str(tmp_path / "out"), "--checkpoint", str(weights)]
    command += ["--points-per-side", "1", "--images-per-shard", "4", "--device", "cpu"]
    assert main(command) == 0
    summary = capsys.readouterr().out
    assert "4 (3 ok, 1 failed)" in summary
    queries = [line.split(maxsplit=1)[1] for line in summary.splitlines() if " SELECT " in line]
    assert [len(duckdb.connect().execute(query).fetchall()) for query in queries][1] == 1
    assert main(["verify", str(tmp_path / "out")]) == 0
    # Again: nothing is left to do, and another configuration is refused.
    assert main(command) == 0
    assert "4 (3 ok, 1 failed)" in capsys.readouterr().out
    assert main([*command, "--pred-iou-thresh", "0.123"]) == 1
    before = PRESETS["mini"].pred_iou_thresh
    assert f"pred_iou_thresh is {before} there and 0.123 now" in capsys.readouterr().err


@pytest.mark.ray
@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        ("fast", "audit     3 images again in exact precision: 100.00 % of the masks matched at IoU 0.9, 100.00 % of"),
        ("half", "audit     3 images again in exact precision: "),
        ("exact", "maskmill: there is nothing to audit: the run has exact precision"),
    ],
)
def test_images_are_audited_unless_the_run_is_exact(
    tmp_path: Path, precision: str, expected: str, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "drawings").mkdir()
    for number in range(3):
        pixels_HW3 = np.full((200, 300, 3), 40, np.uint8)
        pixels_HW3[60:140, 80 + 20 * number : 220] = 220
        Image.fromarray(pixels_HW3).save(tmp_path / "drawings" / f"{number}.png")
    command = ["generate", str(tmp_path / "drawings"), str(tmp_path / "out"), "--device", "cpu", "--audit", "0.001"]
    options = ["--points-per-side", "4", "--pred-iou-thresh", "0", "--stability-score-thresh", "0"]
    assert main([*command, *options, "--precision", precision]) == 0
    printed = capsys.readouterr()
    assert "masks     0," not in printed.out
    assert sum(line.startswith(expected) for line in (printed.out + printed.err).splitlines()) == 1


@pytest.mark.ray
def test_images_are_decoded_as_the_flags_say(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "tiffs").mkdir()
    (tmp_path / "tiffs" / "a.tif").write_bytes(write(noise(7, 16).astype(np.float32), photometric="minisblack"))
    command = ["generate", str(tmp_path / "tiffs"), str(tmp_path / "out"), "--checkpoint", str(weights)]
    command += ["--points-per-side", "1", "--device", "cpu"]
    decoding = ["--bands", "7,1,2", "--value-range", "0,65535", "--max-image-pixels", "703"]
    assert main([*command, *decoding]) == 0
    assert "1 (1 ok, 0 failed)" in capsys.readouterr().out
    assert main([*command, *decoding[:4], "--max-image-pixels", "704"]) == 1
    assert "max_image_pixels is 703 there and 704 now" in capsys.readouterr().err


@pytest.mark.ray
def test_patterns_stand_when_a_run_is_resumed_or_retried(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
):
    members = {"a.png": picture(1), "bad.png": b"no image", "masks/a.png": picture(2), "a.seg.png": picture(3)}
    (tmp_path / "x.tar").write_bytes(tar_bytes(members))
    options = ["--checkpoint", str(weights), "--device", "cpu"]
    begin = ["generate", str(tmp_path / "x.tar"), str(tmp_path / "out"), *options, "--points-per-side", "1"]
    assert main([*begin, "--exclude", "masks"]) == 0
    summary = capsys.readouterr().out
    assert "images    2 (1 ok, 1 failed)" in summary
    assert "left out  2 images in tars (*.seg.png: 1, matched by --exclude: 1)" in summary
    assert main(begin) == 1
    assert 'names.exclude is ["masks"] there and [] now' in capsys.readouterr().err
    assert main([*begin, "--exclude", "masks"]) == 0
    (tmp_path / "x.tar").write_bytes(tar_bytes(members | {"bad.png": picture(4)}))
    assert main(["retry", str(tmp_path / "out"), *options]) == 0
    summary = capsys.readouterr().out
    assert "images    2 (2 ok, 0 failed)" in summary
    assert "left out  2 images in tars" in summary
    assert main(["verify", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize(
    "name", ["it's", "a [b] c", "x*", "x?", 'q"q', "[!x]", "[", "]", "{a,b}", "a\\b", ":dog:", "$HOME `x`", "--", "Ö"]
)
def test_queries_and_retry_run_as_the_summary_prints_them(
    photographs: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    (photographs / "bad.png").write_bytes(b"no image")
    out = tmp_path / name
    for other in ("a b c", "xy", "a", "b"):  # what a pattern could find instead
        shutil.copytree(photographs, tmp_path / other / "masks")
    run(photographs, out)
    job, _ = begin(photographs, out)
    run_job(job, [])
    printed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    if "\\" in name:
        assert "run queries in the output folder" in printed["note"]
        monkeypatch.chdir(out)
    assert len(duckdb.connect().execute(printed["query"]).fetchall()) == 3
    assert duckdb.connect().execute(printed["failures"]).fetchall()[0][0] == "bad.png"
    words = subprocess.run(["sh", "-c", f"printf '%s\n' {printed['retry']}"], capture_output=True, text=True)
    assert words.stdout.splitlines() == ["maskmill", "retry", str(out)]


@pytest.mark.s3
def test_summary_says_what_duckdb_needs_when_the_output_is_in_s3(
    photographs: Path,
    bucket: str,
    moto: MotoServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", moto.url)
    run(photographs, f"s3://{bucket}/out")
    job, _ = begin(photographs, f"s3://{bucket}/out")
    run_job(job, [])
    assert "extension httpfs and a secret" in capsys.readouterr().out


def open_fake_job(folder: Path) -> tuple[Job, Plan]:
    source = open_source(str(folder / "photographs"))
    identity = Identity(source.uri, "abc", run_config("mini", None, {}, "exact"))
    ledger, plan = open_run(open_storage(str(folder / "out"), make=True), identity, source, images_per_shard=1)
    return Job(source, ledger, FakeEngine(folder), decoding=DecodingConfig(1000), **FROZEN), plan


DRIVER = """
import sys
from pathlib import Path
from maskmill.jobs.cli import app, main
from maskmill.jobs.run import run_job
from tests.jobs.test_generate import open_fake_job

app.command("fake")(lambda: run_job(*open_fake_job(Path(sys.argv[1]))))
sys.exit(main(["fake"]))
"""


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_run_goes_on_when_it_was_stopped(photographs: Path, tmp_path: Path, how: signal.Signals):
    """Ctrl-C, as a terminal sends it, to every process of the group; kill -9 to the driver alone."""
    (photographs / "p2.png").write_bytes(picture(2, HANG_ONCE))
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path)], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 240

    def others_are_committed() -> bool:
        return (tmp_path / "hung").exists() and len(list((tmp_path / "out" / "masks").glob("part-*"))) == 2

    while not others_are_committed() and time.monotonic() < deadline:
        time.sleep(0.05)
    if how == signal.SIGINT:
        for _ in range(2):  # the second time, because one shard would never end
            os.killpg(driver.pid, how)
            time.sleep(2)
    else:
        driver.kill()
    _, errors = driver.communicate(timeout=240)
    assert driver.returncode == (130 if how == signal.SIGINT else -how)
    if how == signal.SIGINT:
        assert errors.splitlines()[-1] == (
            "maskmill: stopped; finished work is kept: run the same command again to resume"
        )
    job, plan = open_fake_job(tmp_path)
    assert len(job.ledger.committed()) == 2
    run_local(job, plan, lambda _: None)
    totals = open_finished_run(job.ledger.storage).totals()
    assert (totals.images, totals.failed) == (3, 0)
