"""Times the engine against the published implementation: the same weights and photographs, in one run.

    python -m benchmarks.engine [--model mini] [--photographs 6] [--points-per-side 32]

Prints a table and writes it, with the figures as JSON, to benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import time
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
import skimage.data
import torch

from jobs.demo import PHOTOGRAPHS
from model.checkpoint import EMBEDDED_WEIGHTS, load_model
from model.config import VARIANTS
from model.optimize import multiplies_bfloat16, optimize, resolve_device
from model.sam import Sam
from pipeline.config import PRESETS
from pipeline.generator import MaskGenerator
from pipeline.images import decode_image
from pipeline.records import ImageMasks, ImageResult, Shard, StepTimer
from pipeline.table import encode_part
from tests import oracles

# isort: split
from segment_anything import SamAutomaticMaskGenerator  # oracles provides for it

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MORE_PHOTOGRAPHS = ROOT.parent / "shared" / "data" / "photos"
PACKAGES = ("torch", "numpy", "pillow", "opencv-python-headless", "pycocotools", "pyarrow", "segment-anything")
MAX_PIXELS = 10**9
STEPS = ("decode", "encode", "prompt", "filter", "rle", "write")


@dataclass(frozen=True)
class Timing:
    """One photograph, its size in pixels, and per engine the seconds it took and the masks it found."""

    photograph: str
    width: int
    height: int
    seconds: dict[str, float] = field(default_factory=dict)
    masks: dict[str, int] = field(default_factory=dict)


def main() -> None:
    """Parses, measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=VARIANTS, default="mini")
    parser.add_argument("--photographs", type=int, help="how many; default: all")
    parser.add_argument("--points-per-side", type=int, default=32)
    arguments = parser.parse_args()

    device = resolve_device("auto")
    sam, weights = _load(arguments.model)
    config = replace(
        PRESETS[sam.config.default_preset],
        points_per_side=arguments.points_per_side,
        # What the published generator does not have.
        max_coverage=None,
        drop_small_masks=False,
    )
    if weights == "untrained":
        # Their scores mean nothing: let everything pass, for both sides.
        config = replace(config, pred_iou_thresh=0, stability_score_thresh=0)
    photographs = _photographs(arguments.photographs)
    environment = _environment(device) | {
        "model": f"{arguments.model}, {weights} weights",
        "points": f"{config.points_per_side} x {config.points_per_side}",
        "pred_iou_thresh": config.pred_iou_thresh,
        "stability_score_thresh": config.stability_score_thresh,
        "min_mask_region_area": config.min_mask_region_area,
    }
    published = oracles.published_generator(oracles.published_sam(sam).to(device), config)
    ours = {"exact": MaskGenerator(optimize(sam, "exact", device), config)}
    if multiplies_bfloat16(device):
        ours["fast"] = MaskGenerator(optimize(sam, "fast", device), config)
    timings, steps = _measure(published, ours, photographs)

    report = _report(timings, steps, environment)
    print(report)
    RESULTS.mkdir(exist_ok=True)
    stem = RESULTS / f"{date.today()}-engine-{arguments.model}"
    stem.with_suffix(".md").write_text(report)
    figures = {"environment": environment, "photographs": [asdict(timing) for timing in timings], "steps_ms": steps}
    stem.with_suffix(".json").write_text(json.dumps(figures, indent=2) + "\n")
    print(f"written: {stem}.md, {stem}.json")


def _load(model: str) -> tuple[Sam, str]:
    if model == "mini" and EMBEDDED_WEIGHTS.exists():
        return load_model(model, None).sam, "embedded"
    torch.manual_seed(0)
    return Sam(VARIANTS[model]).eval(), "untrained"


def _photographs(count: int | None) -> list[Path]:
    bundled = Path(skimage.data.__file__).parent
    paths = [next(bundled.glob(f"{name}.*")) for name in PHOTOGRAPHS]
    return [*paths, *sorted(MORE_PHOTOGRAPHS.glob("*.jpg"))][:count]


def _measure(
    published: SamAutomaticMaskGenerator, ours: dict[str, MaskGenerator], photographs: list[Path]
) -> tuple[list[Timing], dict[str, dict[str, float]]]:
    """A timing per photograph; per engine of ours and step the milliseconds of a photograph, on average."""
    timings: list[Timing] = []
    timers = {name: StepTimer() for name in ours}
    # The first image pays for the allocation of buffers and the choice of kernels.
    warm_up = np.zeros((64, 64, 3), np.uint8)
    published.generate(warm_up)
    for generator in ours.values():
        generator.generate(warm_up, StepTimer())
    for path in photographs:
        data = path.read_bytes()
        pixels = decode_image(data, MAX_PIXELS).pixels
        timing = Timing(path.stem, pixels.shape[1], pixels.shape[0])
        names = ["published", *ours]
        # By turns, so that a machine that slows down or warms up favours none.
        for name in names if len(timings) % 2 == 0 else reversed(names):
            start = time.perf_counter()
            if name == "published":
                timing.masks[name] = len(published.generate(pixels))
                timing.seconds[name] = time.perf_counter() - start
            else:
                masks = ours[name].generate(pixels, timers[name])
                timing.seconds[name] = time.perf_counter() - start
                timing.masks[name] = len(masks)
                _time_the_rest(data, masks, timers[name])
        print(timing)
        timings.append(timing)
    return timings, {
        name: {step: timer.milliseconds.get(step, 0.0) / len(timings) for step in STEPS}
        for name, timer in timers.items()
    }


def _time_the_rest(data: bytes, masks: ImageMasks, timer: StepTimer) -> None:
    """The steps outside the engine."""
    with timer.step("decode"):
        decode_image(data, MAX_PIXELS)
    with timer.step("write"):
        encode_part(Shard(0, ""), [ImageResult("image", "", None, masks, {}, "ok")], identity="")


def _environment(device: torch.device) -> dict[str, str | float]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    versions = [f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in PACKAGES)]
    return {
        "commit": commit.stdout.strip(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "cpu": f"{_cpu_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        # Well above 0, something else was running.
        "load average before": round(os.getloadavg()[0], 1),
        "versions": ", ".join(versions),
    }


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _report(timings: list[Timing], steps: dict[str, dict[str, float]], environment: dict[str, str | float]) -> str:
    names = list(timings[0].seconds)
    ours = names[1:]
    lines = [f"# Engine against the published implementation, {date.today()}", ""]
    lines += [f"- {key}: {value}" for key, value in environment.items()]
    lines += [
        "",
        "Seconds per photograph (masks found), and how many times faster than the published implementation:",
        "",
    ]
    lines += _row(["photograph", "pixels", *names, *(f"{name}: times faster" for name in ours)])
    lines += _row(["---"] * (2 + len(names) + len(ours)))
    total = {name: sum(timing.seconds[name] for timing in timings) for name in names}
    for timing in timings:
        cells = [f"{timing.seconds[name]:.2f} ({timing.masks[name]})" for name in names]
        ratios = [f"{timing.seconds['published'] / timing.seconds[name]:.1f}" for name in ours]
        lines += _row([timing.photograph, f"{timing.width} x {timing.height}", *cells, *ratios])
    ratios = [f"{total['published'] / total[name]:.1f}" for name in ours]
    lines += _row(["all", "", *(f"{total[name]:.2f}" for name in names), *ratios])
    lines += ["", "Milliseconds per photograph by step, on average:", ""]
    lines += _row(["engine", *STEPS])
    lines += _row(["---"] * (1 + len(STEPS)))
    for name in ours:
        lines += _row([name, *(f"{steps[name][step]:.1f}" for step in STEPS)])
    return "\n".join(lines) + "\n"


def _row(cells: list[str]) -> list[str]:
    return [f"| {' | '.join(cells)} |"]


if __name__ == "__main__":
    main()
