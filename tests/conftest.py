"""Fixtures: a GPU, real or pretended; for tests that talk to S3 the servers of testing/s3_servers.py and a bucket."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.request import Request, urlopen

import pytest

if TYPE_CHECKING:
    from testing.s3_servers import FaultProxy, MotoServer

_numbers = itertools.count(1)


@pytest.fixture(params=["pretended", pytest.param("real", marks=pytest.mark.gpu)])
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of the device."""
    import torch

    from tests.pretend_gpu import pretend_gpu

    if request.param == "pretended":
        with pretend_gpu(monkeypatch):
            yield "cuda"
    elif torch.cuda.is_available():
        yield "cuda"
    else:
        pytest.skip("no CUDA device")


@pytest.fixture(scope="session")
def moto() -> Iterator[MotoServer]:
    from testing.s3_servers import MotoServer, running  # here: most tests need no server

    with running(MotoServer()) as server:
        yield server


@pytest.fixture(scope="session")
def _proxy(moto: MotoServer) -> Iterator[FaultProxy]:
    from testing.s3_servers import FaultProxy, running

    with running(FaultProxy(moto.url)) as server:
        yield server


@pytest.fixture
def proxy(_proxy: FaultProxy) -> FaultProxy:
    """The proxy before moto, without faults until a test wants some."""
    _proxy.behave()
    return _proxy


@pytest.fixture
def s3_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials for a test server, and nothing of this machine's own AWS configuration."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "tester",
        "AWS_SECRET_ACCESS_KEY": "secret-of-the-tester",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(tmp_path / "aws-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "aws-credentials"),
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def bucket(moto: MotoServer, s3_environment: None) -> str:
    """The name of a new bucket at `moto`, and so behind `proxy`."""
    name = f"bucket-{next(_numbers)}"
    urlopen(Request(f"{moto.url}/{name}", method="PUT")).close()
    return name
