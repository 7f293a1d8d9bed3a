"""`maskmill view` in a browser: the grid, one image, two runs, a site of static files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as coco

from maskmill.filters import rle
from maskmill.jobs.cli import main
from maskmill.pipeline.finished import Run
from maskmill.pipeline.records import Failure
from tests.tables.conftest import Console
from tests.tables.viewing import drawn_run, plain_file_server, rectangles, serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

SLOW_MACHINE_MS = 120_000
# Mask 0 is the left half, mask 1 a square in it, mask 2 a strip at the right. Areas: 4800, 400, 1600 of 9600 pixels, so
# predicted IoUs are 0.75, 0.521, 0.583.
MASKS = rectangles((0, 0, 60, 80), (20, 30, 40, 50), (100, 0, 120, 80))
HOSTILE = (
    "<img src=x onerror=alert(1)>.png",
    "<script>alert(1)<script>.png",
    "\"quotes\" 'single' `back`.png",
    "new\nline.png",
    "a..%2f..%2fetc%2fpasswd.png",
    "#image=x&pin=0:1?q.png",
    "\u202egnp.rtl.png",
)
IMAGES: dict[str, NDArray[np.bool_] | Failure] = {
    "a.png": MASKS,
    "b/empty.png": rectangles(),
    "b/full.png": MASKS,
    "c/bad.png": Failure("decode", "damaged: <b>bold</b>"),
    "c/lost.png": Failure("prompt", "2 workers failed at this image"),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run")
    return drawn_run(folder / "photographs", IMAGES, folder / "out")


@pytest.fixture(scope="module")
def address(run: Run) -> Iterator[str]:
    with serving(run) as address:
        yield address


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    page = chromium.new_page(viewport={"width": 1000, "height": 700})
    page.set_default_timeout(SLOW_MACHINE_MS)
    yield page
    page.close()


def open_grid(page: Page, address: str, state: str = "") -> Console:
    console = Console(page, (address,))
    page.goto(f"{address}/#{state}")
    page.wait_for_selector("#grid[data-ready]")
    return console


def open_image(page: Page, address: str, state: str) -> Console:
    console = Console(page, (address,))
    page.goto(f"{address}/#{state}")
    wait_for_image(page)
    return console


def wait_for_image(page: Page) -> None:
    page.wait_for_selector("#viewer[data-ready]")
    draw(page)


def draw(page: Page) -> None:
    """Waits until the page has drawn its state."""
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def names(page: Page) -> list[str]:
    return page.locator(".card .name").all_text_contents()


def wait_until(page: Page, script: str, argument: object = None) -> None:
    """Waits until a JavaScript function returns true. Page.wait_for_function needs eval, which the policy forbids."""
    for _ in range(SLOW_MACHINE_MS // 50):
        if page.evaluate(script, argument):
            return
        page.wait_for_timeout(50)
    pytest.fail(f"still false: {script} of {argument}, on {page.url}")


def wait_for_address(page: Page, expected: str) -> None:
    wait_until(page, "expected => location.hash === expected", expected)


def wait_for_names(page: Page, expected: list[str]) -> None:
    script = """expected => {
        const names = [...document.querySelectorAll(".card .name")].map(name => name.textContent);
        return names.length === expected.length && names.every((name, index) => name === expected[index]);
    }"""
    wait_until(page, script, expected)
    page.wait_for_selector("#grid[data-ready]")


def wait_for_title(page: Page, image_id: str) -> None:
    wait_until(page, "id => document.querySelector('#title').textContent === id", image_id)
    wait_for_image(page)


def wait_for_pictures(page: Page) -> None:
    wait_until(page, "() => [...document.images].every(image => image.complete && image.naturalWidth)")


def place(page: Page, x: float, y: float, stage: int = 0) -> tuple[float, float]:
    """Where a pixel of the image is on the page, if the whole image is shown."""
    box = page.locator(".frame").nth(stage).bounding_box()
    assert box
    scale = min(box["width"] / 120, box["height"] / 80)
    return box["x"] + box["width"] / 2 + (x + 0.5 - 60) * scale, box["y"] + box["height"] / 2 + (y + 0.5 - 40) * scale


def hover(page: Page, x: float, y: float, stage: int = 0) -> None:
    page.mouse.move(*place(page, x, y, stage))
    draw(page)


def alpha(page: Page, layer: str, x: float, y: float, stage: int = 0) -> int:
    """The opacity of a layer at a pixel of the image, 0 to 255."""
    left, top = place(page, x, y, stage)
    script = """(canvas, [left, top]) => {
        const box = canvas.getBoundingClientRect(), scale = canvas.width / box.width;
        const context = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
        context.drawImage(canvas, -Math.floor((left - box.left) * scale), -Math.floor((top - box.top) * scale));
        return context.getImageData(0, 0, 1, 1).data[3];
    }"""
    return page.locator(f"canvas.{layer}").nth(stage).evaluate(script, [left, top])


def details(page: Page) -> dict[str, str]:
    rows = page.locator("#details tr").all_inner_texts()
    return {name: value for name, _, value in (row.partition("\t") for row in rows)}


def slide(page: Page, name: str, value: float) -> None:
    page.locator(f"input[name={name}]").evaluate(
        "(input, value) => { input.value = value; input.dispatchEvent(new Event('input', {bubbles: true})) }", value
    )
    draw(page)


def test_grid_shows_all_images_with_pictures_and_counts(page: Page, address: str):
    console = open_grid(page, address)

    assert names(page) == list(IMAGES)
    facts = page.locator(".facts").all_text_contents()
    assert facts == ["3 masks", "0 masks", "3 masks", "failed: decode", "quarantined: prompt"]
    wait_for_pictures(page)
    assert page.locator("#grid img").count() == 4  # one cannot be decoded
    assert page.locator("#place").text_content() == "1 to 5 of 5"
    assert console.messages == []


def test_search_and_status_filter_the_grid_and_the_address(page: Page, address: str):
    console = open_grid(page, address)

    page.fill("#text", "B/")
    wait_for_names(page, ["b/empty.png", "b/full.png"])
    page.select_option("#show", "empty")
    wait_for_names(page, ["b/empty.png"])
    wait_for_address(page, "#text=B%2F&show=empty")
    page.fill("#text", "")
    page.select_option("#show", "failed")
    wait_for_names(page, ["c/bad.png"])
    assert page.locator(".blank").text_content() == "damaged: <b>bold</b>"
    page.select_option("#show", "quarantined")
    wait_for_names(page, ["c/lost.png"])
    page.fill("#text", "nothing")
    page.wait_for_selector("text=No image matches.")
    wait_for_address(page, "#text=nothing&show=quarantined")
    page.reload()
    page.wait_for_selector("text=No image matches.")
    assert page.input_value("#text") == "nothing"
    assert console.messages == []


def test_pages_turn_forwards_and_backwards(page: Page, tmp_path: Path):
    images = {f"{number:03d}.png": rectangles() for number in range(130)}
    with serving(drawn_run(tmp_path / "photographs", images, tmp_path / "out", images_per_shard=7)) as address:
        console = open_grid(page, address)
        every = list(images)
        assert names(page) == every[:60]
        page.click("#next")
        wait_for_names(page, every[60:120])
        assert page.locator("#place").text_content() == "61 to 120 of 130"
        page.keyboard.press("ArrowRight")
        wait_for_names(page, every[120:])
        assert page.locator("#next").is_disabled()
        page.reload()
        wait_for_names(page, every[120:])
        page.click("#previous")
        wait_for_names(page, every[60:120])
        page.keyboard.press("ArrowLeft")
        wait_for_names(page, every[:60])
        assert page.locator("#previous").is_disabled()
        page.go_back()
        wait_for_names(page, every[60:120])
        assert console.messages == []


def test_image_opens_from_the_grid_with_its_masks(page: Page, address: str):
    console = open_grid(page, address)
    page.click("text=a.png")
    wait_for_image(page)

    assert page.locator("#title").text_content() == "a.png"
    assert page.locator("#count").text_content() == "3 of 3 masks"
    assert alpha(page, "picture", 80, 40) == 255
    assert [alpha(page, "masks", x, y) > 0 for x, y in ((5, 5), (30, 40), (110, 40), (80, 40))] == [True] * 3 + [False]
    assert console.messages == []


def test_pointer_highlights_and_click_pins(page: Page, address: str):
    console = open_image(page, address, "image=a.png")

    hover(page, 30, 40)  # two masks are here: the small one lies on top
    assert details(page) == {
        "mask_id": "1",
        "predicted IoU": "0.521",
        "stability": "0.950",
        "area": "400 px",
        "of the image": "4.17 %",
        "box": "20, 30, 19, 19",
        "point": "0.5, 0.5",
        "crop": "0, 0, 120, 80",
    }
    assert alpha(page, "highlight", 30, 40) > 0
    assert alpha(page, "highlight", 50, 40) == 0
    hover(page, 110, 40)
    assert details(page)["mask_id"] == "2"
    hover(page, 80, 40)
    assert details(page) == {}
    assert alpha(page, "highlight", 110, 40) == 0
    page.mouse.click(*place(page, 5, 5))
    hover(page, 110, 40)
    assert details(page)["mask_id"] == "0"
    assert page.locator("#details h2").text_content() == "Pinned mask"
    wait_for_address(page, "#image=a.png&pin=0%3A0")
    page.keyboard.press("Escape")
    draw(page)
    assert details(page)["mask_id"] == "2"
    assert console.messages == []


@pytest.mark.parametrize(
    ("slider", "value", "left"),
    [("iou", 0.55, [0, 2]), ("iou", 0.7, [0]), ("min", 80, [0, 2]), ("max", 80, [1]), ("stability", 0.96, [])],
)
def test_sliders_hide_masks_at_once_and_stay_in_the_address(
    page: Page, address: str, slider: str, value: float, left: list[int]
):
    console = open_image(page, address, "image=a.png")

    slide(page, slider, value)

    def shown() -> list[int]:
        """The masks in whose own pixels something is drawn; mask 1 covers a part of mask 0."""
        places = {0: (5, 5), 1: (30, 40), 2: (110, 40)}
        drawn = [mask for mask, (x, y) in places.items() if alpha(page, "masks", x, y)]
        return [mask for mask in drawn if mask != 1 or 0 not in drawn or page_has_mask_1()]

    def page_has_mask_1() -> bool:
        hover(page, 30, 40)
        return details(page)["mask_id"] == "1"

    assert shown() == left
    assert page.locator("#count").text_content() == f"{len(left)} of 3 masks"
    wait_until(page, "name => location.hash.includes(name)", f"{slider}=")
    page.reload()
    wait_for_image(page)
    assert shown() == left
    assert float(page.input_value(f"input[name={slider}]")) == pytest.approx(value)
    assert console.messages == []


def test_keys_go_through_images_and_masks(page: Page, address: str):
    console = open_image(page, address, "image=a.png")
    page.wait_for_selector("#viewer[data-neighbours]")

    assert page.locator("#previous").is_disabled()
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#viewer[data-neighbours]")
    wait_for_title(page, "b/empty.png")
    page.wait_for_selector("#viewer[data-neighbours]")
    page.keyboard.press("ArrowLeft")
    wait_for_title(page, "a.png")
    assert alpha(page, "masks", 5, 5) > 0
    pinned = []
    for key in ("ArrowDown", "ArrowDown", "ArrowDown", "ArrowUp"):  # by area: 0, 2, 1
        page.keyboard.press(key)
        draw(page)
        pinned.append(details(page)["mask_id"])
    assert pinned == ["0", "2", "1", "2"]
    page.keyboard.press("m")
    draw(page)
    assert alpha(page, "masks", 5, 5) == 0
    page.keyboard.press("m")
    draw(page)
    assert alpha(page, "masks", 5, 5) > 0
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    page.wait_for_selector("#grid[data-ready]")
    assert names(page) == list(IMAGES)
    assert console.messages == []


def test_next_image_is_the_next_that_matches(page: Page, address: str):
    open_image(page, address, "image=a.png&text=full")
    page.wait_for_selector("#viewer[data-neighbours]")
    page.keyboard.press("ArrowRight")
    wait_for_title(page, "b/full.png")


def test_zoom_and_pan_are_in_the_address(page: Page, address: str):
    open_image(page, address, "image=a.png")
    x, y = place(page, 30, 40)
    page.mouse.move(x, y)
    page.mouse.wheel(0, -300)
    wait_until(page, "() => location.hash.includes('view=')")
    draw(page)
    page.mouse.move(x + 5, y)
    draw(page)
    assert details(page)["mask_id"] == "1"  # what is under the pointer stays there
    zoomed = page.url
    page.mouse.down()
    page.mouse.move(x - 200, y, steps=4)
    page.mouse.up()
    wait_until(page, "zoomed => location.hash.includes('view=') && location.href !== zoomed", zoomed)
    assert "pin" not in page.url
    page.keyboard.press("0")
    wait_for_address(page, "#image=a.png")


def test_two_runs_are_side_by_side(page: Page, run: Run, tmp_path: Path):
    images = {"a.png": MASKS[[0, 2]], "b/full.png": rectangles((0, 0, 60, 60))}
    other = drawn_run(tmp_path / "photographs", images, tmp_path / "other")
    with serving(run, other) as address:
        console = open_image(page, address, "image=b/full.png")
        assert page.locator(".stage h2").all_text_contents() == ["out: 3 of 3 masks", "other: 1 of 1 masks"]
        hover(page, 5, 5)
        assert details(page)["run"] == "out\tother"
        assert details(page)["IoU of the two"] == "0.750"
        assert alpha(page, "highlight", 5, 5, stage=1) > 0
        hover(page, 5, 70, stage=1)
        assert details(page) == {}
        slide(page, "iou", 0.7)
        titles = page.locator(".stage h2").all_text_contents()
        assert titles == ["out: 1 of 3 masks", "other: 0 of 1 masks"]
        # Masks of the same object have one colour: those of a.png agree, but their ranks differ.
        page.goto(f"{address}/#image=a.png")
        wait_for_title(page, "a.png")
        assert console.messages == []

        page.goto(f"{address}/#image=b/empty.png")
        wait_for_title(page, "b/empty.png")
        problems = page.locator(".problem")
        assert not problems.nth(0).is_visible()
        assert problems.nth(1).text_content() == "This run has no such image, or it is not done yet."


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("c/bad.png", "This image failed in the step decode: damaged: <b>bold</b>"),
        ("c/lost.png", "This image was quarantined in the step prompt: 2 workers failed at this image"),
        ("nowhere.png", "This run has no such image, or it is not done yet."),
    ],
)
def test_image_that_failed_shows_its_reason(page: Page, address: str, image: str, message: str):
    console = open_image(page, address, f"image={image}")
    assert page.locator(".problem").text_content() == message
    assert console.messages == []


def test_masks_are_shown_when_the_picture_is_gone(page: Page, tmp_path: Path):
    run = drawn_run(tmp_path / "photographs", {"a.png": MASKS, "b.png": MASKS}, tmp_path / "out")
    (tmp_path / "photographs" / "a.png").unlink()
    with serving(run) as address:
        open_image(page, address, "image=a.png")
        assert "No such file" in (page.locator(".problem").text_content() or "")
        assert alpha(page, "masks", 5, 5) > 0


def test_hostile_names_are_only_text(page: Page, tmp_path: Path):
    images: dict[str, Any] = {name: MASKS if number else Failure("filter", name) for number, name in enumerate(HOSTILE)}
    run = drawn_run(tmp_path / "photographs", images, tmp_path / "out <b>'\"")
    with serving(run) as address:
        console = open_grid(page, address)
        listed = names(page)
        assert sorted(listed) == sorted(HOSTILE)
        assert page.locator("#home").text_content() == "out <b>'\""
        for number, name in enumerate(listed):
            page.locator(".card").nth(number).click()
            wait_for_image(page)
            assert page.locator("#title").text_content() == name
            if name == HOSTILE[0]:
                assert name in (page.locator(".problem").text_content() or "")
            page.go_back()
            page.wait_for_selector("#grid[data-ready]")
        page.fill("#text", HOSTILE[0])
        wait_for_names(page, [HOSTILE[0]])
        assert page.evaluate("document.querySelectorAll('main img[src=x], main script').length") == 0
        assert console.messages == []


def test_scripts_in_the_page_are_refused_by_its_policy(page: Page, address: str):
    console = open_grid(page, address)
    page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.x = 1'}))"
    )
    assert page.evaluate("window.x") is None
    assert any("Content Security Policy" in message for message in console.messages)


def test_page_of_another_origin_gets_nothing(page: Page, address: str, tmp_path: Path):
    (tmp_path / "index.html").write_text("<!DOCTYPE html><title>another page</title>")
    with plain_file_server(tmp_path) as elsewhere:
        page.goto(elsewhere)
        fetched = page.evaluate(
            "url => fetch(url).then(r => r.text(), error => String(error))", f"{address}/data/runs.json"
        )
        assert "TypeError" in fetched
        picture = """url => new Promise(done => {
            const image = new Image();
            image.onload = () => done("loaded");
            image.onerror = () => done("refused");
            image.src = url;
        })"""
        assert page.evaluate(picture, f"{address}/data/0/thumbnail/0.0.jpg") == "refused"


def random_masks(count: int) -> list[NDArray[np.bool_]]:
    random = np.random.default_rng(0)
    masks = [random.random((31, 47)) < random.random() for _ in range(count)]
    return [*masks, np.ones((31, 47), bool), np.zeros((31, 47), bool), np.eye(31, 47, dtype=bool)]


def test_browser_decodes_masks_as_pycocotools_does(page: Page, address: str):
    open_grid(page, address)
    masks = random_masks(40)
    counts = [rle.encode(mask) for mask in masks]
    script = """async counts => {
        const { decode, rasterise, iou } = await import("./masks.js");
        const masks = counts.map(text => decode(text, 31));
        for (const mask of masks) {
            mask.area = 0;
            for (let k = 0; k < mask.ys.length; k += 2) mask.area += mask.ys[k + 1] - mask.ys[k];
        }
        const drawn = masks.map(mask => {
            const labels = new Uint8Array(31 * 47);
            rasterise([mask], {x: 0, y: 0, scale: 1}, labels, 47, 31);
            return [...labels];
        });
        return { drawn, ious: masks.map(a => masks.map(b => iou(a, b))) };
    }"""
    result = page.evaluate(script, [text.decode() for text in counts])

    for mask, drawn in zip(masks, result["drawn"], strict=True):
        assert np.array_equal(np.array(drawn, bool).reshape(47, 31).T, mask)
    rles: Any = [{"size": [31, 47], "counts": text} for text in counts]
    expected = coco.iou(rles, rles, [0] * len(rles))
    # Two empty masks: pycocotools divides by zero, the page says 0.
    np.testing.assert_allclose(np.array(result["ious"]), np.nan_to_num(expected), atol=1e-12)


def test_a_thousand_masks_are_all_shown(page: Page, tmp_path: Path):
    boxes = [(x, y, x + 3, y + 2) for x in range(0, 120, 3) for y in range(0, 80, 3)][:1000]
    with serving(drawn_run(tmp_path / "photographs", {"a.png": rectangles(*boxes)}, tmp_path / "out")) as address:
        console = open_image(page, address, "image=a.png")
        assert page.locator("#count").text_content() == f"{len(boxes)} of {len(boxes)} masks"
        hover(page, *boxes[777][:2])
        assert details(page)["mask_id"] == "777"
        assert console.messages == []


def test_site_works_on_a_plain_file_server(page: Page, run: Run, tmp_path: Path):
    other = drawn_run(tmp_path / "photographs", {"a.png": MASKS[:1], HOSTILE[1]: MASKS}, tmp_path / "other")
    site = tmp_path / "site"
    assert main(["view", run.storage.uri, other.storage.uri, "--site", str(site)]) == 0

    with plain_file_server(site) as address:
        console = open_grid(page, address)
        assert names(page) == list(IMAGES)
        wait_for_pictures(page)
        page.fill("#text", "B/")
        wait_for_names(page, ["b/empty.png", "b/full.png"])
        page.select_option("#show", "empty")
        wait_for_names(page, ["b/empty.png"])
        page.goto(f"{address}/#image=a.png")
        wait_for_image(page)
        assert page.locator(".stage h2").all_text_contents() == ["out: 3 of 3 masks", "other: 1 of 1 masks"]
        hover(page, 5, 5)
        assert details(page)["IoU of the two"] == "1.000"
        page.wait_for_selector("#viewer[data-neighbours]")
        page.keyboard.press("ArrowRight")
        wait_for_title(page, "b/empty.png")
        page.goto(f"{address}/#image=c/bad.png")
        page.wait_for_selector("text=This image failed in the step decode")
        assert console.messages == []
