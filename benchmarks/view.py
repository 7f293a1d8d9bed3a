"""How fast `maskmill view` opens a large run and draws an image with many masks: python -m benchmarks.view

Needs the extra `view`, Playwright and Chromium. Prints, in seconds and milliseconds of wall-clock time:

- from the start of the command to the first page with its list of images, on a synthetic run;
- the mean and the longest time between frames while the pointer moves over an image with 1,000 masks, and while a
  slider moves.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from maskmill.pipeline.storage import open_storage
from testing.synthetic_runs import mask_pool, write_run

if TYPE_CHECKING:
    from playwright.sync_api import Page

COMMAND = "import sys; from maskmill.jobs.cli import main; sys.exit(main())"
FRAMES = 120
# Calls a function once per animation frame. Returns the mean and the longest time between frames in milliseconds.
PER_FRAME = """async (frames) => {
    const times = [];
    for (let k = 0; k <= frames; k++) {
        times.push(await new Promise(requestAnimationFrame));
        ACTION
    }
    const gaps = times.slice(1).map((time, k) => time - times[k]);
    return [gaps.reduce((a, b) => a + b) / gaps.length, Math.max(...gaps)];
}"""
MOVE_POINTER = """
    const frame = document.querySelector(".frame"), box = frame.getBoundingClientRect();
    const clientX = box.left + box.width * (0.1 + 0.8 * k / frames);
    const clientY = box.top + box.height * (0.3 + 0.4 * k / frames);
    frame.dispatchEvent(new PointerEvent("pointermove", {clientX, clientY, bubbles: true}));
"""
MOVE_SLIDER = """
    const slider = document.querySelector("#sliders input");
    slider.value = Number(slider.min) + (slider.max - slider.min) * k / frames;
    slider.dispatchEvent(new Event("input", {bubbles: true}));
"""


@contextmanager
def viewing(out: Path) -> Iterator[str]:
    """The address that `maskmill view` prints for a run."""
    process = subprocess.Popen([sys.executable, "-c", COMMAND, "view", str(out)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        yield next(line for line in process.stdout if line.startswith("view")).split()[1]
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


def opening(page: Page, out: Path) -> float:
    """Seconds from the start of the command to the list of images."""
    started = time.perf_counter()
    with viewing(out) as address:
        page.goto(address)
        page.wait_for_selector("#grid[data-ready]")
        return time.perf_counter() - started


def frame_times(page: Page, out: Path, image_id: str) -> dict[str, list[float]]:
    """The mean and the longest time between frames in milliseconds, by what moves."""
    with viewing(out) as address:
        page.goto(f"{address}/#image={image_id}")
        page.wait_for_selector("#viewer[data-ready]")
        actions = {"pointer": MOVE_POINTER, "slider": MOVE_SLIDER}
        return {name: page.evaluate(PER_FRAME.replace("ACTION", action), FRAMES) for name, action in actions.items()}


def main() -> None:
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--masks", type=int, default=1000, help="of the image that is drawn")
    arguments = parser.parse_args()
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        parser.error("Chromium is not installed")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        large, crowded = Path(folder, "large"), Path(folder, "crowded")
        write_run(open_storage(str(large), make=True), arguments.images, 1, mask_pool(64, 480, 640), 4096)
        write_run(open_storage(str(crowded), make=True), 1, arguments.masks, mask_pool(arguments.masks, 1000, 1500))
        page = playwright.chromium.launch(executable_path=program).new_page(viewport={"width": 1400, "height": 900})
        seconds = [opening(page, large) for _ in range(3)]
        frames = frame_times(page, crowded, "0000/0000000.jpg")
    print(f"load average: {os.getloadavg()[0]:.1f}")
    print(f"opening a run of {arguments.images} images: {', '.join(f'{s:.2f}' for s in seconds)} s")
    for name, (mean, longest) in frames.items():
        print(f"{arguments.masks} masks, {name} moves: {mean:.1f} ms between frames, at most {longest:.1f}")


if __name__ == "__main__":
    main()
