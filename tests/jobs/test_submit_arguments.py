"""How `maskmill submit` reads its arguments and names its job; without a cluster."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from maskmill.jobs.cli import app, main
from maskmill.jobs.generate import generate
from maskmill.jobs.options import given_arguments
from maskmill.pipeline import ray_jobs
from maskmill.pipeline.errors import ConfigError
from maskmill.pipeline.ray_jobs import job_name

group = get_command(app)
assert isinstance(group, TyperGroup)
COMMANDS = group.commands


@pytest.mark.parametrize("command", ["submit", "doctor"])
def test_command_has_every_option_of_generate(command: str):
    options = {parameter.name: parameter.opts for parameter in COMMANDS[command].params}
    assert {parameter.name: parameter.opts for parameter in COMMANDS["generate"].params}.items() <= options.items()


@pytest.mark.parametrize(
    "arguments",
    [
        ["s3://bucket/a", "/out"],
        ["/a b", "/out", "--include", "*.jpg", "--include", "train", "--model", "vit_h", "--checkpoint", "/w.pth"],
        ["/a", "/out", "--no-m2m", "--points-per-side", "8", "--pred-iou-thresh", "0.5", "--log-format", "json"],
        ["/a", "/out", "--use-m2m", "--bands", "3,2,1", "--source", "/b", "--image-timeout", "60"],
        ["--device", "cpu", "--", "-a", "/out"],
    ],
)
def test_job_gets_the_options_that_submit_got(arguments: list[str]):
    context: Any = COMMANDS["submit"].make_context("submit", ["--detach", *arguments])
    passed_on = given_arguments(context, generate, without=("address",))
    parsed = [COMMANDS["generate"].make_context("generate", words).params for words in (list(arguments), passed_on)]
    assert parsed[0] == parsed[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["photos", "/out"], "SOURCE photos is a path relative to this folder"),
        (["/photos", "out"], "OUT out is a path relative to this folder"),
        (["/photos", "/out", "--checkpoint", "w.pth"], "--checkpoint w.pth is a path relative to this folder"),
        (["/photos", "/out", "--model", "vit_x"], "vit_x"),
        (["/photos", "/out", "--precision", "vague"], "there is no precision 'vague'"),
        (["/photos", "/out", "--device", "tpu"], "there is no device 'tpu'"),
        (["/photos", "/out", "--bands", "0"], "bands"),
        (["/photos", "/out", "--labels", "L4"], "--labels 'L4': write KEY=VALUE"),
        (["/photos", "/out"], "give --address http://HEAD:8265 or set RAY_API_SERVER_ADDRESS"),
        (["/photos", "/out", "--address", "ray://head:10001"], "ray://head:10001: not the address of a Ray dashboard"),
        (["/photos", "/out", "--driver-label", "x"], "--driver-label x: give KEY=VALUE"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_sent(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    for name in ray_jobs.ADDRESS_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert main(["submit", *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_job_has_the_name_of_its_output_and_settings():
    name = job_name("s3://bucket/runs/out 1", "identity")
    assert name.startswith("maskmill-out-1-")
    assert name == job_name("s3://bucket/runs/out 1/", "identity")
    others = [job_name("s3://bucket/runs/out 1", "other"), job_name("s3://bucket/other/out 1", "identity")]
    assert len({name, *others}) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no zip", "not a wheel"),
        (None, "not a wheel"),
        (bytes(ray_jobs.MAX_UPLOAD_BYTES + 1), "100 MiB, but the dash"),
    ],
    ids=["damaged", "missing", "too large"],
)
def test_wheel_that_cannot_be_sent_is_refused(content: bytes | None, message: str, tmp_path: Path):
    wheel = tmp_path / "maskmill-0-py3-none-any.whl"
    if content and len(content) > 100:
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("maskmill/large", content)
    elif content:
        wheel.write_bytes(content)
    with pytest.raises(ConfigError, match=message), ray_jobs._packages(wheel):
        pass
