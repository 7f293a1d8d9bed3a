"""Runs on S3, killed at every request that changes it, which never reaches it, or when another run is done."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from concurrent.futures import Future
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from maskmill.pipeline.storage import open_storage
from maskmill.pipeline.verify import verify
from testing.s3_servers import Fault, FaultProxy, Request
from tests.fakes import FAIL, picture
from tests.kills import Objects, differences, objects, start, strangers, was_killed
from tests.runs import run

pytestmark = pytest.mark.s3

READING = ("GET", "HEAD")


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Three in one shard; b fails in the engine."""
    (tmp_path / "photographs").mkdir()
    for seed, name in enumerate("abc"):
        data = picture(seed, FAIL if name == "b" else (0, 0, 0))
        (tmp_path / "photographs" / f"{name}.png").write_bytes(data)
    return tmp_path / "photographs"


def run_in(environment: dict[str, str], photographs: Path, out: str) -> None:
    """A run in a process whose environment is that of its server."""
    os.environ.update(environment)
    run(photographs, out, images_per_shard=3)


class Killer:
    """A script of the proxy: a process is killed that sends its number-th request that changes the store.

    The others need no kill: what is in the store is the same before the next one that changes it. The request waits
    until it is `released`. Then it goes to the store, as one does that lingered in the network, if it `lands`.
    """

    def __init__(self, number: int, lands: bool) -> None:
        self.killed = ""  # by which request
        self.released = threading.Event()
        self._number, self._lands = number, lands
        self._requests = itertools.count(1)
        self._process: Future[BaseProcess] = Future()

    def aim(self, process: BaseProcess) -> None:
        """Says which process it is about."""
        self._process.set_result(process)

    def __call__(self, request: Request) -> Fault | None:
        if self.killed or request.method in READING or next(self._requests) != self._number:
            return None
        process = self._process.result()
        assert process.pid
        os.kill(process.pid, signal.SIGKILL)
        self.killed = f"{request.method} {request.path}"
        self.released.wait(60)
        return None if self._lands else Fault.RESET_BEFORE


def seen(out: str) -> Objects:
    return objects(open_storage(out))


@pytest.mark.parametrize("lands", [False, True])
def test_run_ends_like_one_left_in_peace_when_it_is_killed_at_any_request(
    photographs: Path, bucket: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, lands: bool
):
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    run_in(environment, photographs, f"s3://{bucket}/undisturbed")
    undisturbed = seen(f"s3://{bucket}/undisturbed")
    kills = 0
    while True:
        out, killer = f"s3://{bucket}/{kills}", Killer(kills + 1, lands)
        proxy.behave(killer)
        process = start(partial(run_in, environment, photographs, out))
        killer.aim(process)
        if not was_killed(process):
            break
        kills += 1
        assert strangers(seen(out), undisturbed) == [], f"seen after the kill at {killer.killed}"
        run_in(environment, photographs, out)
        killer.released.set()
        assert differences(seen(out), undisturbed) == [], f"after the kill at {killer.killed} and a resumption"
        assert [offence for check in verify(open_storage(out)) for offence in check.offences] == []
    assert kills >= 7, "the probe, the run, the plan, the part and its images"
