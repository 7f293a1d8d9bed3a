"""Fakes behind the real interfaces: an engine that needs no model, a clock that stands still."""

from __future__ import annotations

import ctypes
import io
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from maskmill.filters import rle
from maskmill.filters.names import FILTERS
from maskmill.pipeline.config import DecodingConfig
from maskmill.pipeline.images import decode_image
from maskmill.pipeline.prompts import View
from maskmill.pipeline.records import DecodedImage, ImageMasks, ImageResult, StepTimer
from maskmill.pipeline.views import ResizedImage, ResizedView

Colour = tuple[int, int, int]

# What a FakeEngine or the poison_decoder does is told by the top left pixel of the image.
FAIL: Colour = (255, 0, 10)  # raises in the step "filter"
KILL: Colour = (255, 0, 20)  # its process dies at once
KILL_ONCE: Colour = (255, 0, 30)  # its process dies at once, but only the first time
HANG: Colour = (255, 0, 35)  # takes for ever
SEGFAULT: Colour = (255, 0, 60)  # these two for the poison_decoder: reads where it may not
HOG: Colour = (255, 0, 70)  # takes memory, up to HOG_BYTES, and keeps it
HOG_BYTES = 6 * 2**30
HANG_ONCE: Colour = (255, 0, 40)  # takes for ever, but only the first time
WAIT: Colour = (255, 0, 45)  # takes until there is a file `released` in its folder
LOSE_DEVICE: Colour = (255, 0, 50)  # faults the device of its process, but only the first time
LOSE_DEVICE_ALWAYS: Colour = (255, 0, 55)

# What PyTorch raises for every call on a GPU that has faulted.
DEVICE_LOST = "CUDA error: an illegal memory access was encountered"
# What the call that causes the fault raises depends on the library that made it.
DEVICE_FAULTS = {
    "torch": DEVICE_LOST,
    "driver": "CUDA driver error: unspecified launch failure",
    "triton": "Triton Error [CUDA]: an illegal memory access was encountered",
    "cudnn": "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    "cublas": "cuBLAS error: CUBLAS_STATUS_EXECUTION_FAILED when calling cublasLtMatmul",
}


def frozen_clock() -> float:
    """A clock that stands still: every step takes 0 ms, so that parts can be compared byte by byte."""
    return 0.0


# Arguments of a Job. Its parts have the same bytes whenever and wherever they are made.
FROZEN: dict[str, Any] = {"clock": frozen_clock, "wall_clock": frozen_clock, "worker_name": str}


def as_it_is(pixels_HW3: NDArray[np.uint8]) -> ResizedImage:
    """For an engine that takes images at any size: one view, not resized."""
    height, width = pixels_HW3.shape[:2]
    view = View((0, 0, width, height), np.zeros((0, 2)))
    return ResizedImage(height, width, (ResizedView(view, torch.tensor(pixels_HW3)),))


def image_masks(masks_NHW: NDArray[np.bool_]) -> ImageMasks:
    """The columns of N boolean masks, N at least 0, with scores that depend on nothing else."""
    count, height, width = masks_NHW.shape
    counts = tuple(rle.encode(mask) for mask in masks_NHW)
    area = masks_NHW.sum(axis=(1, 2), dtype=np.int64)
    return ImageMasks(
        height=height,
        width=width,
        area=area,
        boxes=np.array([rle.bbox(c, height, width) for c in counts], np.int64).reshape(count, 4),
        predicted_iou=(0.5 + area / (2 * height * width)).astype(np.float32),
        stability_score=np.full(count, 0.95, np.float32),
        points=np.full((count, 2), 0.5, np.float64),
        crop_boxes=np.tile(np.array([[0, 0, width, height]], np.int64), (count, 1)),
        rle_counts=counts,
        dropped={name: position for position, name in enumerate(FILTERS)},
    )


def image_result(image_id: str, masks_NHW: NDArray[np.bool_]) -> ImageResult:
    """An image that went well."""
    return ImageResult(
        image_id=image_id,
        source_uri=f"/photographs/{image_id}",
        sha256="0" * 64,
        outcome=image_masks(masks_NHW),
        milliseconds={"fetch": 1.0, "decode": 2.0, "encode": 3.0},
        status="ok",
    )


@dataclass(frozen=True)
class FakeEngine:
    """Masks that are a function of the pixels: of each channel, where it is above its mean, unless that is nowhere."""

    folder: Path  # where it remembers what it has done once, whatever process it is in
    seconds: float = 0.0  # if more, every image takes so long and leaves its process id in `folder`/generated
    at_once: int = 1
    fault: str = DEVICE_LOST  # the message of the call that faults the device; those that follow raise DEVICE_LOST

    def __call__(self) -> FakeEngine:
        """Itself: an engine without state is its own factory."""
        return self

    @property
    def _lost(self) -> Path:
        """This file exists once the device of this process has faulted."""
        return self.folder / f"lost-{os.getpid()}"

    def device_answers(self) -> bool:
        return not self._lost.exists()

    def prepare(self, pixels_HW3: NDArray[np.uint8]) -> ResizedImage:
        self._use_device()
        return as_it_is(pixels_HW3)

    def _use_device(self) -> None:
        if not self.device_answers():
            raise RuntimeError(DEVICE_LOST)

    def generate(self, image: ResizedImage, timer: StepTimer) -> ImageMasks:
        self._use_device()
        pixels_HW3 = image.views[0].pixels_rc3.numpy()
        if self.seconds:
            time.sleep(self.seconds)
            with (self.folder / "generated").open("a") as stream:
                stream.write(f"{os.getpid()}\n")
        command = tuple(int(value) for value in pixels_HW3[0, 0])
        if command == KILL or (command == KILL_ONCE and self._first("killed")):
            os.kill(os.getpid(), signal.SIGKILL)
        if command == LOSE_DEVICE_ALWAYS or (command == LOSE_DEVICE and self._first("lost")):
            self._lost.touch()
            raise RuntimeError(self.fault)
        if command == HANG or (command == HANG_ONCE and self._first("hung")):
            time.sleep(10_000)
        while command == WAIT and not (self.folder / "released").exists():
            time.sleep(0.05)
        with timer.step("filter"):
            if command == FAIL:
                raise ValueError("no masks\nfor tensor at 0x7f3a5c0011d0")
            masks_NHW = np.moveaxis(pixels_HW3 > pixels_HW3.mean(axis=(0, 1)), 2, 0)
        return image_masks(masks_NHW[masks_NHW.any(axis=(1, 2))])

    def _first(self, name: str) -> bool:
        try:
            (self.folder / name).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


def poison_decoder(data: bytes, decoding: DecodingConfig) -> DecodedImage:
    """A decoder that some images end as hostile bytes end a real one: by a crash, by all the memory, by a loop."""
    decoded = decode_image(data, decoding)
    command = tuple(int(value) for value in decoded.pixels[0, 0])
    if command == SEGFAULT:
        ctypes.string_at(0)
    if command == HOG:
        taken = [np.ones(2**28, np.uint8) for _ in range(HOG_BYTES // 2**28)]
        time.sleep(10_000 * len(taken))
    if command == HANG:
        time.sleep(10_000)
    return decoded


def picture(seed: int, command: Colour = (0, 0, 0)) -> bytes:
    """A PNG of noise, small and never the same size, that tells a FakeEngine what to do."""
    pixels_HW3 = np.random.default_rng(seed).integers(0, 255, (8 + seed % 5, 9 + seed % 7, 3), np.uint8)
    pixels_HW3[0, 0] = command
    buffer = io.BytesIO()
    Image.fromarray(pixels_HW3).save(buffer, "PNG")
    return buffer.getvalue()
