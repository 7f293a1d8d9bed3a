"""`maskmill report`: what it counts, and the page in a browser."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest

from maskmill.filters import rle
from maskmill.filters.names import FILTERS
from maskmill.jobs.cli import main
from maskmill.pipeline.finished import open_finished_run
from maskmill.pipeline.records import Shard
from maskmill.pipeline.storage import open_storage
from maskmill.pipeline.table import IMAGES, MASKS
from maskmill.tables.report import page as report_page
from maskmill.tables.report import write_report
from maskmill.tables.report.concavity import concavity
from maskmill.tables.report.figures import (
    CENTRE_CELLS,
    MASK_COLUMNS,
    REASONS_KEPT,
    SAMPLE_IMAGES,
    Figures,
    ImageCounter,
    add_masks,
    collect,
    throughput,
)
from maskmill.tables.report.svg import ticks
from tests.fakes import FAIL, picture
from tests.pipeline.test_sources import tar_bytes
from tests.runs import begin, run
from tests.tables.conftest import Console

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from testing.s3_servers import MotoServer

HOSTILE = "<script>alert(1)<script> & \"quotes\" 'single'.png"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A run over five images; one fails."""
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for seed, name in enumerate(["a.png", "b.png", "c.png", HOSTILE, "failing.png"]):
        (photographs / name).write_bytes(picture(seed, FAIL if name == "failing.png" else (0, 0, 0)))
    run(photographs, tmp_path / "out")
    return tmp_path / "out"


def untracked(what: str, unit: str, total: int, items: Iterator[Any]) -> Iterator[Any]:
    return items


def written(out: Path | str) -> str:
    return write_report(open_finished_run(open_storage(str(out))), untracked)


@pytest.mark.browser
@pytest.mark.parametrize("width", [1400, 360])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_figure_is_drawn_when_the_page_is_opened(chromium: Browser, out: Path, width: int, scheme: Any):
    assert main(["report", str(out)]) == 0

    page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    console = Console(page, ("file:", "data:"))
    page.goto((out.parent / "report.html").as_uri())

    titles = page.locator("figure h3").all_text_contents()
    assert titles == [
        *("Masks per image", "Mask size", "Concavity", "Mask centres"),
        *("Predicted IoU", "Stability score", "Filters", "Throughput", "Steps"),
    ]
    drawings = page.locator("figure svg").all()
    assert len(drawings) == len(titles)
    for title, drawing in zip(titles, drawings, strict=True):
        box = drawing.bounding_box()
        assert box is not None, title
        assert min(box["width"] / 250, box["height"] / 100) > 1, title
        marks = drawing.locator(".bar, .cell").all()
        # The clock of the run stands still, so its steps took no time.
        assert any(mark.bounding_box() for mark in marks) or title == "Steps", title
        assert len(drawing.locator(".label").all()) >= 1, title
        inside = drawing.evaluate(
            "svg => [...svg.querySelectorAll('text')].every(t => { const a = svg.getBoundingClientRect(), "
            "b = t.getBoundingClientRect(); return b.left >= a.left - 1 && b.right <= a.right + 1 })"
        )
        assert inside, title
    pictures = page.locator(".pictures img")
    assert pictures.count() == 4
    assert pictures.evaluate_all("images => images.every(image => image.complete && image.naturalWidth > 0)")
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert HOSTILE in page.locator(".pictures").inner_text()
    light = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert light == (scheme == "light")
    assert console.messages == []
    page.close()


def test_report_names_failures_with_step_reason_and_example(out: Path):
    text = written(out)
    assert "ValueError: no masks for tensor at 0x..." in text
    assert re.search(r"<td[^>]*>1</td><td[^>]*>filter</td><td>ValueError.*</td><td>failing.png</td>", text)


def test_names_cannot_become_markup(out: Path):
    text = written(out)
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert "default-src &#x27;none&#x27;" in text or "default-src 'none'" in text


@pytest.mark.parametrize("kind", ["empty", "failed", "no masks"])
def test_report_is_written_when_there_are_no_masks(tmp_path: Path, kind: str):
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    data = {"failed": b"no image", "no masks": picture(1, (9, 9, 9))}.get(kind, picture(0))
    (photographs / "a.png").write_bytes(data)
    if kind == "empty":
        begin(photographs, tmp_path / "out")
    else:
        run(photographs, tmp_path / "out")

    text = written(tmp_path / "out")

    assert ("0 of 1 shards are done" in text) == (kind == "empty")
    assert ("No masks yet" in text) == (kind != "no masks")


def test_report_says_why_there_are_no_pictures_when_the_source_is_gone(out: Path):
    (out.parent / "photographs").rename(out.parent / "moved")
    assert "The images cannot be shown: " in written(out)
    assert main(["report", str(out), "--source", str(out.parent / "moved"), "--to", str(out.parent / "r.html")]) == 0
    assert (out.parent / "r.html").read_text().count("<img") == 4


def test_report_shows_the_other_pictures_when_one_image_is_gone(out: Path):
    (out.parent / "photographs" / "b.png").unlink()
    text = written(out)
    assert text.count("<img") == 3
    assert "No such file or directory" in text


def test_report_has_pictures_when_images_are_in_a_tar(tmp_path: Path):
    members = {f"{name}.png": picture(seed) for seed, name in enumerate("abcdef")}
    (tmp_path / "photographs.tar").write_bytes(tar_bytes(members))
    run(tmp_path / "photographs.tar", tmp_path / "out")
    assert written(tmp_path / "out").count("<img") == 6


def test_report_refuses_when_the_folder_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["report", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"maskmill: error: {tmp_path}: not an output of maskmill: it has no _run.json\n"


def test_report_names_a_damaged_part(out: Path, capsys: pytest.CaptureFixture[str]):
    part = next((out / "masks").iterdir())
    part.write_bytes(part.read_bytes()[:100])
    assert main(["report", str(out)]) == 1
    assert capsys.readouterr().err.startswith(f"maskmill: error: {part}: damaged: ")


@pytest.mark.s3
def test_report_of_a_run_on_s3_is_that_of_one_on_disk(
    out: Path, moto: MotoServer, bucket: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", moto.url)
    run(out.parent / "photographs", f"s3://{bucket}/out")

    def comparable(text: str, address: str) -> str:
        text = text.replace(address, "ADDRESS")
        return re.sub(r"<figure><h3>Throughput.*", "", text)  # the times differ

    assert comparable(written(f"s3://{bucket}/out"), f"s3://{bucket}/out") == comparable(written(out), str(out))


def test_figures_count_every_mask_once(out: Path):
    figures = collect(open_finished_run(open_storage(str(out))), untracked)

    masks = pa.concat_tables(
        [open_finished_run(open_storage(str(out))).masks.to_table(columns=["area", "image_height", "image_width"])]
    )
    assert figures.masks == len(masks) > 0
    for counts in (figures.area_share, figures.predicted_iou, figures.stability_score, figures.centres):
        assert counts.sum() == len(masks)
    assert figures.concavity.sum() == len(masks)
    assert figures.status == Counter(ok=4, failed=1)
    assert figures.masks_per_image.sum() == 4
    assert {image.row["image_id"] for image in figures.sample} == {"a.png", "b.png", "c.png", HOSTILE}
    assert figures.throughput is not None
    assert figures.throughput.images.sum() == 5


def test_masks_fall_into_the_bins_of_their_size_and_place():
    figures = Figures()
    row = {
        "image_height": 100,
        "image_width": 200,
        "area": 5000,
        "bbox_x": 0,
        "bbox_y": 50,
        "bbox_w": 99,
        "bbox_h": 49,
        "predicted_iou": 1.5,
        "stability_score": float("nan"),
    }
    add_masks(figures, pa.Table.from_pylist([row], schema=pa.schema([MASKS.field(name) for name in MASK_COLUMNS])))

    assert np.flatnonzero(figures.area_share).tolist() == [25]  # sqrt(5000 / 20000) = 0.5
    assert np.argwhere(figures.centres).tolist() == [[CENTRE_CELLS * 3 // 4, CENTRE_CELLS // 4]]
    assert np.flatnonzero(figures.predicted_iou).tolist() == [len(figures.predicted_iou) - 1]
    assert figures.stability_score.sum() == 0


def _million_images() -> Iterator[pa.Table]:
    """Rows of a million images in 1,000 parts. One in ten failed, each for another reason; ids are long."""
    random = np.random.default_rng(0)
    for shard in range(1000):
        count = 1000
        failed = np.arange(count) % 10 == 0
        ids = [f"{'folder/' * 20}{shard}-{row}.jpg" for row in range(count)]
        reasons = [f"reason {shard}-{row} {'x' * 400}" if failed[row] else None for row in range(count)]
        n_masks = np.where(failed, 0, random.integers(0, 12_000, count))
        columns: dict[str, Any] = {
            "image_id": ids,
            "shard": [f"{shard:05d}"] * count,
            "source_uri": ids,
            "image_height": [None if bad else 1500 for bad in failed],
            "image_width": [None if bad else 2000 for bad in failed],
            "sha256": ["0" * 64] * count,
            "n_masks": n_masks,
            "status": np.where(failed, "failed", "ok"),
            "error_step": ["decode" if bad else None for bad in failed],
            "error": reasons,
            **{f"dropped_{name}": [None if bad else 3 for bad in failed] for name in FILTERS},
            **{name: np.full(count, 1.0) for name in IMAGES.names if name.endswith("_ms")},
            "attempt": np.ones(count, int),
        }
        yield pa.table([pa.array(columns[field.name], field.type) for field in IMAGES], schema=IMAGES)


@pytest.mark.slow
def test_report_stays_small_when_a_run_has_a_million_images():
    figures = Figures()
    counter = ImageCounter(figures)
    committed = Counter[str]()
    for images in _million_images():
        counter.add(Shard(0, "/photographs"), images)
        committed.update(images["shard"].to_pylist())
    counter.finish()
    figures.throughput = throughput(committed, {f"{shard:05d}": 1e9 + 60 * shard for shard in range(1000)})
    figures.masks = 10**8
    for counts in (figures.centres, figures.area_share, figures.predicted_iou, figures.stability_score):
        counts += 10**8 // counts.size
    figures.concavity += 100

    text = report_page.render("s3://bucket/out", {}, figures, [], "no pictures here")

    assert figures.images == 1_000_000
    assert len(figures.sample) == SAMPLE_IMAGES
    assert len(figures.reasons) == REASONS_KEPT
    assert figures.other_reasons + sum(reason.images for reason in figures.reasons) == 100_000
    # Twelve pictures of 560 x 560 pixels at JPEG quality 80 take at most 3 MB as base64.
    assert len(text.encode()) < 1_000_000


def test_throughput_adds_up_when_parts_were_committed_in_an_uneven_rhythm():
    committed = Counter({f"{index:05d}": 10 for index in range(40)})
    times = {part: 1000.0 + index**2 for index, part in enumerate(sorted(committed))}
    figures = throughput(committed, times)
    assert figures is not None
    assert figures.images.sum() == 400
    assert figures.start == 1000.0
    assert figures.bin_seconds * len(figures.images) == pytest.approx(39**2)
    assert figures.images[0] > figures.images[-1]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (["####", "####"], 0),  # convex
        (["#..", "...", "..#"], 1 - 2 / 5),  # the hull of two pixel squares at opposite corners
        (["###", "#.#", "###"], 1 / 9),  # a hole
        (["#.#", "#.#", "###"], 2 / 9),
    ],
)
def test_concavity_is_the_missing_share_of_the_hull(rows: list[str], expected: float):
    mask_HW = np.zeros((7, 9), bool)
    for y, x in itertools.product(range(len(rows)), range(len(rows[0]))):
        mask_HW[y + 2, x + 3] = rows[y][x] == "#"
    assert concavity(rle.encode(mask_HW), 7, 9) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.5, 1]),
        (0, 17, [0, 5, 10, 15]),
        (0.35, 1, [0.4, 0.6, 0.8, 1.0]),
        (0, 0, [0, 0.5, 1]),
        (0, 4e6, [0, 1e6, 2e6, 3e6, 4e6]),
    ],
)
def test_ticks_are_round_numbers_within_the_axis(low: float, high: float, expected: list[float]):
    assert ticks(low, high, 4) == pytest.approx(expected)
