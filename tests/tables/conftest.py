"""A small run with a failed image, in a folder and in S3. A headless Chromium, which `.ci/run` installs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from maskmill.pipeline.storage import open_storage
from tests.fakes import FAIL, picture
from tests.runs import run

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

    from testing.s3_servers import MotoServer

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
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


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A browser. One per module, because Playwright's event loop may not outlive its tests."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        assert "CI" not in os.environ, "CI must have Chromium"
        pytest.skip("no Chromium: install the system's package `chromium`")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program)
        yield browser
        browser.close()


class Console:
    """What a page reported: console messages, uncaught errors, and requests to other places than allowed."""

    def __init__(self, page: Page, allowed: tuple[str, ...]) -> None:
        self.messages: list[str] = []
        page.on("console", lambda message: self.messages.append(message.text))
        page.on("pageerror", lambda error: self.messages.append(str(error)))
        page.on("request", lambda request: self._check(request.url, allowed))
        page.on("dialog", lambda dialog: self.messages.append(f"dialog: {dialog.message}"))

    def _check(self, url: str, allowed: tuple[str, ...]) -> None:
        if not url.startswith(allowed):
            self.messages.append(f"request: {url}")
