"""Measures the peak memory for an image of 8192x8192 pixels with over 1000 masks, in addition to the loaded model.

    python -m benchmarks.memory [--model vit_b] [--precision fast] [--device cuda]

A photograph is enlarged to that size, and all candidates pass all filters and are encoded as run lengths. The
measurement runs in a separate process and spans from the encoded bytes of the image to its run lengths. Networks with
random weights use the masks of `mini` (benchmarks/load.py). These masks and the imports count as part of the model.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import re
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import torch
from PIL import Image

from benchmarks import load, peers
from benchmarks.machine import RESULTS, describe_machine
from maskmill.model.checkpoint import load_model
from maskmill.model.families import VARIANTS
from maskmill.model.optimize import optimize, resolve_device
from maskmill.pipeline.config import GeneratorConfig
from maskmill.pipeline.images import decode_image
from testing.networks import random_network

SIDE = 8192
CONFIG = GeneratorConfig(points_per_side=19, pred_iou_thresh=0, stability_score_thresh=0, box_nms_thresh=1)
BAR_BYTES = 2 * 2**30


def main() -> None:
    """Prepares the image, measures in a separate process, and prints and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=VARIANTS, default="vit_b")
    parser.add_argument("--precision", choices=("exact", "fast"), default="fast")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--photograph", type=Path, help="default: the astronaut of scikit-image")
    parser.add_argument("--side", type=int, default=SIDE, help="of the image, in pixels; default: 8192")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="default: benchmarks/results")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)  # used by the separate process
    arguments = parser.parse_args()
    device = resolve_device(arguments.device)
    if arguments.measure:
        print(json.dumps(_measure(arguments.measure, arguments.model, arguments.precision, device)))
        return
    environment = describe_machine(device)
    with tempfile.TemporaryDirectory() as folder:
        _prepare(Path(folder), arguments.photograph, arguments.side, device)
        command = [sys.executable, "-m", "benchmarks.memory", "--measure", folder, "--device", arguments.device]
        command += ["--model", arguments.model, "--precision", arguments.precision]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    measured = json.loads(done.stdout.splitlines()[-1])

    lines = [f"# Memory of one image of {arguments.side} x {arguments.side} pixels, {date.today()}", ""]
    lines += [f"- {key}: {value}" for key, value in environment.items()]
    lines += [f"- model: {arguments.model}, {arguments.precision}", ""]
    lines += ["| | |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in measured.items())]
    report = "\n".join(lines) + "\n"
    print(report)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"{date.today()}-memory-{arguments.model}-{arguments.precision}-{device.type}.md"
    path.write_text(report)
    print(f"written: {path}")


def _prepare(folder: Path, photograph: Path | None, side: int, device: torch.device) -> None:
    if photograph is None:
        import skimage.data

        photograph = Path(skimage.data.__file__).parent / "astronaut.png"
    enlarged = Image.open(photograph).convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    enlarged.save(folder / "image.jpg", quality=90)
    assert CONFIG.points_per_side is not None
    pixels_HW3 = decode_image((folder / "image.jpg").read_bytes(), peers.DECODING).pixels
    candidates = load.CandidateFinder(CONFIG.points_per_side, device)(pixels_HW3)
    torch.save(vars(candidates), folder / "candidates.pt")


def _measure(folder: Path, model: str, precision: str, device: torch.device) -> dict[str, str]:
    if model == "mini":
        network, replay = load_model(model, None).network, None
    else:
        network = random_network(VARIANTS[model])
        replay = load.Replay(network.config, device)
        replay.show(load.Candidates(**torch.load(folder / "candidates.pt")))
    engine = peers.Maskmill(optimize(network, precision, device), replay, CONFIG)
    del network
    data = (folder / "image.jpg").read_bytes()
    peaks: dict[str, int] = {}

    def clock() -> float:
        """Records the peak memory since the last call under the current step, and returns the time in seconds."""
        step = engine.timer.current
        peaks[step] = max(_status("VmHWM"), peaks.get(step, 0))
        _forget_peak()
        return time.perf_counter()

    engine.clock = clock
    # Returns free heap memory to the system. Otherwise the image could reuse it without increasing the resident size.
    ctypes.CDLL(None).malloc_trim(0)
    _forget_peak()
    before = _status("VmRSS")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    allocated = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    start = time.perf_counter()
    masks = engine(data)
    seconds = clock() - start
    assert len(masks) > 1000, f"{len(masks)} masks are too few for the bar"
    figures = {
        "masks": str(len(masks)),
        "seconds": f"{seconds:.1f}",
        "loaded model, resident": _mebibytes(before),
        "peak above it": _mebibytes(max(peaks.values()) - before),
        "bar": _mebibytes(BAR_BYTES),
    } | {f"peak above it, in {step}": _mebibytes(peak - before) for step, peak in peaks.items()}
    if device.type == "cuda":
        figures["peak above it, on the GPU"] = _mebibytes(torch.cuda.max_memory_allocated(device) - allocated)
    return figures


def _forget_peak() -> None:
    """Resets the peak resident size (VmHWM) of this process."""
    Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> int:
    """Returns a field of /proc/self/status in bytes."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:.0f} MiB"


if __name__ == "__main__":
    main()
