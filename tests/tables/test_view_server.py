"""`maskmill view` without a browser: what is served and to whom, what is read, and the command."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import pytest
from PIL import Image

from maskmill.jobs.cli import main
from maskmill.pipeline.errors import ImageError
from maskmill.pipeline.finished import Run, open_finished_run
from maskmill.pipeline.records import Failure
from maskmill.pipeline.storage import LocalStorage, open_storage
from maskmill.tables.view.content import ASSETS, Content
from maskmill.tables.view.listing import SHARDS_PER_PAGE, Listing, Position
from tests.fakes import picture
from tests.pipeline.test_sources import tar_bytes
from tests.runs import begin, retry
from tests.runs import run as generate
from tests.tables.viewing import drawn_run, rectangles, serving

if TYPE_CHECKING:
    from testing.s3_servers import MotoServer

MASKS = rectangles((0, 0, 60, 80), (20, 30, 40, 50))
PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run")
    images = {"a.png": MASKS, "b.png": MASKS, "c.png": Failure("decode", "damaged")}
    (folder / "photographs").mkdir()
    (folder / "photographs" / "secret.txt").write_text("secret")
    return drawn_run(folder / "photographs", images, folder / "out")


@pytest.fixture(scope="module")
def address(run: Run) -> Iterator[str]:
    with serving(run) as address:
        yield address.removeprefix("http://")


Answer = tuple[int, bytes, http.client.HTTPMessage]


def get(address: str, path: str, headers: dict[str, str] | None = None, method: str = "GET") -> Answer:
    """Sends the path as it is, which browsers and urllib would clean first."""
    connection = http.client.HTTPConnection(address)
    connection.putrequest(method, path, skip_host="Host" in (headers or {}), skip_accept_encoding=True)
    for name, value in (headers or {}).items():
        connection.putheader(name, value)
    connection.endheaders()
    response = connection.getresponse()
    answer = response.status, response.read(), response.headers
    connection.close()
    return answer


@pytest.mark.parametrize("path", ["/", *(f"/{name}" for name in ASSETS)])
def test_page_and_its_files_are_served_with_their_types(address: str, path: str):
    status, body, headers = get(address, path)
    assert (status, headers["content-type"]) == (200, ASSETS[path[1:] or "index.html"])
    assert body


def test_files_of_the_page_are_all_listed():
    assert {path.name for path in (PROJECT / "tables" / "view" / "page").iterdir()} == set(ASSETS)


@pytest.mark.parametrize(
    "path",
    [
        "/../../../pyproject.toml",
        "/..%2f..%2fpyproject.toml",
        "/%2e%2e/%2e%2e/pyproject.toml",
        "//etc/passwd",
        "/content.py",
        "/page/index.html",
        "/data/0/../../../etc/passwd",
        "/data/0/..%2f..%2fsecret.txt.jpg",
        "/data/0/secret.txt",
        "/data/0/a.png.jpg",
        "/data/0/0.0.png",
        "/data/0/0.99.json",
        "/data/0/999999999.0.json",
        "/data/0/-1.0.json",
        "/data/0/\u0660.0.json".encode().decode("latin-1"),
        "/data/1/0.0.json",
        "/data/99999999999999999999/0.0.json",
        "/data/0/page.json?at=x",
        "/data/0/page.json?show=x",
        "/data/0/page.json?limit=-1",
        "/data/0/page.json?limit=99999999999",
    ],
)
def test_nothing_else_is_served(address: str, path: str):
    status, body, headers = get(address, urllib.parse.quote(path, safe="/%?=.", encoding="latin-1"))
    assert status == 404
    assert set(json.loads(body)) == {"error"}
    assert headers["content-security-policy"].startswith("default-src 'none'")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_only_reading_is_allowed(address: str, method: str):
    assert get(address, "/data/runs.json", method=method)[0] == 405


@pytest.mark.parametrize("path", ["/", "/main.js", "/data/runs.json", "/data/0/0.0.jpg"])
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:1234"}, 200),  # a forwarded port
        ({"Host": "[::1]:8642", "Origin": "http://[::1]:8642"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "localhost.evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example:8642"}, 403),
        ({"Host": ""}, 403),
        ({"Host": "localhost:1234", "Origin": "http://localhost:1234"}, 200),
        ({"Host": "localhost:1234", "Origin": "http://localhost:4321"}, 403),
        ({"Host": "localhost:1234", "Origin": "https://localhost:1234"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Dest": "image"}, 403),
    ],
)
def test_other_hosts_and_origins_get_nothing(address: str, path: str, headers: dict[str, str], status: int):
    answered, body, answer = get(address, path, headers)
    assert answered == status
    assert (b"does not answer" in body or b"only served as" in body) == (status == 403)
    assert answer["cross-origin-resource-policy"] == "same-origin"
    assert answer["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in answer


def test_link_on_another_page_opens_the_page_and_nothing_else(address: str):
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "document", "Sec-Fetch-Mode": "navigate"}
    assert get(address, "/", link)[0] == 200
    assert get(address, "/data/runs.json", link)[0] == 403
    assert get(address, "/", link | {"Sec-Fetch-Dest": "iframe"})[0] == 403


def test_server_listens_on_the_loopback_interface_only(address: str):
    port = int(address.rpartition(":")[2])
    with socket.socket() as anywhere:
        # Another interface of this machine refuses. 127.0.0.2 stands for one: it is always there on Linux.
        assert anywhere.connect_ex(("127.0.0.2", port)) != 0


def test_picture_that_was_replaced_since_the_run_is_not_shown(tmp_path: Path):
    run = drawn_run(tmp_path / "photographs", {"a.png": MASKS}, tmp_path / "out")
    (tmp_path / "photographs" / "a.png").write_bytes(picture(3))
    content = Content(run)
    found = content.listing.at(Position(0, 0))
    assert found
    with pytest.raises(ImageError, match="has changed since the run"):
        content.picture(found)


def test_large_pictures_are_reduced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import io

    run = drawn_run(tmp_path / "photographs", {"a.png": MASKS}, tmp_path / "out")
    found = Content(run).listing.at(Position(0, 0))
    assert found
    content = Content(run)
    Image.new("RGB", (5000, 100)).save(tmp_path / "photographs" / "a.png")
    found = replace(found, row={**found.row, "sha256": None})
    assert Image.open(io.BytesIO(content.picture(found))).size == (4096, 82)
    assert Image.open(io.BytesIO(content.thumbnail(found))).size == (320, 6)


@dataclass(frozen=True)
class CountingStorage(LocalStorage):
    """Counts how often each object is opened."""

    opened: Counter[str] = field(default_factory=Counter[str], kw_only=True)

    def open(self, key: str) -> BinaryIO:
        self.opened[key] += 1
        return super().open(key)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Counter[str]]:
    """A run with 350 shards of 2 images; the last image failed. And what is opened in it."""
    folder = tmp_path_factory.mktemp("many")
    images: dict[str, Any] = {f"{number:03d}.png": rectangles() for number in range(700)}
    images["699.png"] = Failure("filter", "no masks")
    drawn_run(folder / "photographs", images, folder / "out")
    storage = CountingStorage(folder / "out")
    return open_finished_run(storage), storage.opened


def test_a_page_reads_the_parts_of_its_images_only(many: tuple[Run, Counter[str]]):
    run, opened = many
    opened.clear()
    page = Listing(run).page(Position(100, 1), limit=60)
    assert [found.row["image_id"] for found in page.images] == [f"{number:03d}.png" for number in range(201, 261)]
    assert page.next == Position(130, 1)
    assert sum(opened.values()) <= 2 * 31  # shards 100 to 130; at most as many ahead
    assert set(opened) <= {f"masks/part-{shard:05d}.parquet" for shard in range(100, 162)}


def test_a_search_reads_the_parts_of_images_that_match_only(many: tuple[Run, Counter[str]]):
    run, opened = many
    opened.clear()
    page = Listing(run).page(Position(0, 0), text="33.PNG")
    assert [found.row["image_id"] for found in page.images] == [f"{hundred}33.png" for hundred in range(7)]
    assert set(opened) == {f"masks/part-{50 * hundred + 16:05d}.parquet" for hundred in range(7)}


def test_a_search_for_something_rare_ends_early_and_goes_on(many: tuple[Run, Counter[str]]):
    run, opened = many
    opened.clear()
    first = Listing(run).page(Position(0, 0), show="failed")
    assert first.images == []
    assert first.next is not None
    assert sum(opened.values()) < 2 * (SHARDS_PER_PAGE + 64) < 2 * 350
    second = Listing(run).page(first.next, show="failed")
    assert [str(found.position) for found in second.images] == ["349.1"]
    assert second.next is None
    backwards = Listing(run).page(Position(349, 0), step=-1, limit=3)
    assert [str(found.position) for found in backwards.images] == ["349.0", "348.1", "348.0"]
    assert backwards.next == Position(347, 1)


def test_opening_one_image_reads_one_part(many: tuple[Run, Counter[str]]):
    run, opened = many
    opened.clear()
    content = Content(run)
    found = content.listing.find("301.png")
    assert found
    assert content.image(found)["number"] == 301
    assert set(opened) == {"masks/part-00150.parquet"}


def test_images_of_a_retry_keep_their_places(tmp_path: Path):
    (tmp_path / "photographs").mkdir()
    for number in range(4):
        (tmp_path / "photographs" / f"{number}.png").write_bytes(picture(number) if number % 2 else b"no image")
    generate(tmp_path / "photographs", tmp_path / "out", images_per_shard=4)
    listing = Listing(open_finished_run(open_storage(str(tmp_path / "out"))))
    before = [(str(found.position), found.row["status"]) for found in listing.page(Position(0, 0)).images]
    assert before == [("0.0", "failed"), ("0.1", "ok"), ("0.2", "failed"), ("0.3", "ok")]
    (tmp_path / "photographs" / "2.png").write_bytes(picture(2))
    retry(tmp_path / "out")
    after = [(str(found.position), found.row["status"]) for found in listing.page(Position(0, 0)).images]
    assert after == [("0.0", "failed"), ("0.1", "ok"), ("0.2", "ok"), ("0.3", "ok")]
    found = listing.find("2.png")
    assert found
    assert found.position == Position(0, 2)


def test_run_that_is_still_going_shows_what_is_done(tmp_path: Path):
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "a.png").write_bytes(picture(0))
    begin(tmp_path / "photographs", tmp_path / "out")
    content = Content(open_finished_run(open_storage(str(tmp_path / "out"))))
    assert content.page(content.listing.page(Position(0, 0)))["images"] == []
    assert content.listing.find("a.png") is None
    generate(tmp_path / "photographs", tmp_path / "out")
    assert [image["id"] for image in content.page(content.listing.page(Position(0, 0)))["images"]] == ["a.png"]


def test_images_of_tars_are_shown_in_any_order(tmp_path: Path):
    members = {f"{number}.png": picture(number) for number in range(8)}
    for tar in ("x.tar", "y.tar"):
        (tmp_path / "tars").mkdir(exist_ok=True)
        (tmp_path / "tars" / tar).write_bytes(tar_bytes(members))
    generate(tmp_path / "tars", tmp_path / "out")
    run = open_finished_run(open_storage(str(tmp_path / "out")))
    content = Content(run)
    listing = content.listing
    images = listing.page(Position(0, 0)).images
    assert len(images) == 16
    assert listing.number(images[0].position) is None  # the plan does not list them
    in_order = [content.picture(found) for found in images]  # it compares hashes
    assert [content.picture(found) for found in reversed(images)] == in_order[::-1]
    assert [found.row["image_id"] for found in listing.page(Position(0, 0), text="Y.TAR/3").images] == ["y.tar/3.png"]


def test_imported_annotations_are_shown_and_reported(run: Run, tmp_path: Path):
    assert main(["export", run.storage.uri, str(tmp_path / "coco.json"), "--format", "coco"]) == 0
    photographs = Path(run.storage.uri).parent / "photographs"
    assert main(["import", str(tmp_path / "coco.json"), str(tmp_path / "out"), "--images", str(photographs)]) == 0
    imported, original = (
        Content(open_finished_run(open_storage(str(out)))) for out in (tmp_path / "out", run.storage.uri)
    )
    a, b = (content.listing.find("a.png") for content in (imported, original))
    assert a
    assert b
    assert imported.image(a)["rles"] == original.image(b)["rles"]
    assert imported.picture(a) == original.picture(b)
    assert imported.description["lowest_iou"] == 0
    assert main(["report", str(tmp_path / "out"), "--to", str(tmp_path / "report.html")]) == 0
    assert "coco" in (tmp_path / "report.html").read_text()


@pytest.mark.s3
def test_run_on_s3_is_shown_as_one_on_disk(
    run: Run, tmp_path: Path, moto: MotoServer, bucket: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", moto.url)
    on_s3 = open_storage(f"s3://{bucket}/out")
    for item in run.storage.list():
        on_s3.put(item.key, run.storage.read(item.key))
    here, there = Content(run), Content(open_finished_run(on_s3))
    images = here.listing.page(Position(0, 0)).images
    assert there.page(there.listing.page(Position(0, 0))) == here.page(here.listing.page(Position(0, 0)))
    assert there.image(images[0]) == here.image(images[0])
    assert there.picture(images[0]) == here.picture(images[0])


def test_site_has_the_first_images_and_refuses_a_folder_in_use(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    site = tmp_path / "site"
    assert main(["view", run.storage.uri, "--site", str(site), "--limit", "2"]) == 0
    assert capsys.readouterr().out == f"images    2\nsite      {site}\n"
    assert sorted(path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()) == sorted(
        [*ASSETS, "data/runs.json", "data/0/list-0.json"]
        + [f"data/0/{name}" for at in ("0.0", "0.1") for name in (f"{at}.json", f"{at}.jpg", f"thumbnail/{at}.jpg")]
    )
    runs = json.loads((site / "data/runs.json").read_text())
    assert runs["site"] == {"images": 2, "lists": [1]}
    assert main(["view", run.storage.uri, "--site", str(site)]) == 1
    assert capsys.readouterr().err == (f"maskmill: error: --site {site}: the folder is not empty: choose another one\n")


def test_command_serves_until_it_is_interrupted(run: Run, tmp_path: Path):
    command = [sys.executable, "-c", "import sys; from maskmill.jobs.cli import main; sys.exit(main())"]
    environment = os.environ | {"PYTHONPATH": f"{PROJECT}/src"}
    viewer = subprocess.Popen(
        [*command, "view", run.storage.uri], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert viewer.stdout
        line = viewer.stdout.readline()
        found = re.fullmatch(r"view      http://(localhost:\d+)\n", line)
        assert found, line
        port = found[1].rpartition(":")[2]
        status, body, _ = get(f"127.0.0.1:{port}", "/data/runs.json")
        assert (status, json.loads(body)["runs"][0]["images"]) == (200, 3)
        taken = subprocess.run(
            [*command, "view", run.storage.uri, "--port", port], env=environment, capture_output=True, text=True
        )
        assert (taken.returncode, taken.stderr) == (
            1,
            f"maskmill: error: --port {port}: Address already in use: choose another port\n",
        )
    finally:
        viewer.send_signal(signal.SIGINT)
        assert viewer.wait(timeout=120) == 130
        viewer.stdout.close() if viewer.stdout else None


@pytest.mark.parametrize("arguments", [[], ["--site", "site"]])
def test_view_refuses_when_the_folder_is_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
):
    assert main(["view", str(tmp_path), *arguments]) == 1
    assert capsys.readouterr().err == f"maskmill: error: {tmp_path}: not an output of maskmill: it has no _run.json\n"
