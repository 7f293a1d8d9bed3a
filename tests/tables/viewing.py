"""Runs with drawn masks, and servers of their pages."""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maskmill.pipeline.finished import Run, open_finished_run
from maskmill.pipeline.records import Failure, ImageResult
from maskmill.pipeline.storage import open_storage
from maskmill.pipeline.table import encode_part
from maskmill.tables.view.content import Content
from maskmill.tables.view.server import listen, server
from tests.fakes import image_result
from tests.runs import begin

HEIGHT, WIDTH = 80, 120


def rectangles(*boxes: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    """One mask per box (x0, y0, x1, y1) without its right and lower border."""
    masks_NHW = np.zeros((len(boxes), HEIGHT, WIDTH), bool)
    for mask, (x0, y0, x1, y1) in zip(masks_NHW, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    return masks_NHW


def drawn_run(
    folder: Path, images: Mapping[str, NDArray[np.bool_] | Failure], out: str | Path, images_per_shard: int = 2
) -> Run:
    """A run over grey pictures in `folder`, which it makes, with these masks."""
    for number, image_id in enumerate(images):
        path = folder / image_id
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = io.BytesIO()
        Image.new("RGB", (WIDTH, HEIGHT), (90 + number % 100, 90, 90)).save(picture, "PNG")
        path.write_bytes(picture.getvalue())
    job, plan = begin(folder, out, images_per_shard=images_per_shard)
    for shard in plan:
        results = [_result(folder, image_id, images[image_id]) for image_id in shard.image_ids or ()]
        job.ledger.commit(shard, encode_part(shard, results, job.ledger.identity))
        job.ledger.publish_images(shard.name)
    return open_finished_run(open_storage(str(out)))


def _result(folder: Path, image_id: str, masks: NDArray[np.bool_] | Failure) -> ImageResult:
    sha256 = hashlib.sha256((folder / image_id).read_bytes()).hexdigest()
    result = replace(image_result(image_id, rectangles()), sha256=sha256)
    if isinstance(masks, Failure):
        status: Any = "quarantined" if "workers" in masks.reason else "failed"
        return replace(result, outcome=masks, status=status)
    return replace(result, outcome=image_result(image_id, masks).outcome)


@contextmanager
def serving(*runs: Run) -> Iterator[str]:
    """The address of a viewer of these runs."""
    listening = listen(None)
    running = server([Content(run) for run in runs])
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        running.should_exit = True
        thread.join()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def plain_file_server(folder: Path) -> Iterator[str]:
    """The address of `python -m http.server` in a folder."""
    files = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=files.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{files.server_port}"
    finally:
        files.shutdown()
        thread.join()
        files.server_close()
