"""A small run with a failed image, in a folder and in S3."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from maskmill.pipeline.storage import open_storage
from tests.fakes import FAIL, picture
from tests.runs import run

if TYPE_CHECKING:
    from testing.s3_servers import MotoServer

FAILED = "b/2.png"
NAMES = ("a.png", "b/1.png", FAILED, "c.png", "d.png")


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    (folder / "b").mkdir(parents=True)
    for seed, name in enumerate(NAMES):
        (folder / name).write_bytes(picture(seed, FAIL if name == FAILED else (0, 0, 0)))
    return folder


@pytest.fixture
def on_disk(photographs: Path, tmp_path: Path) -> str:
    """The address of the run in a folder."""
    run(photographs, tmp_path / "out")
    return str(tmp_path / "out")


@pytest.fixture
def on_s3(on_disk: str, bucket: str, moto: MotoServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of the same run in a bucket."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", moto.url)
    here, there = open_storage(on_disk), open_storage(f"s3://{bucket}/out")
    for item in here.list():
        there.put(item.key, here.read(item.key))
    return there.uri


@pytest.fixture(params=["disk", pytest.param("s3", marks=pytest.mark.s3)])
def out(request: pytest.FixtureRequest) -> str:
    """The address of the run in either place."""
    return request.getfixturevalue(f"on_{request.param}")
