"""Compares the run time of the maskmill engine with segment_anything or sam2, and transformers, in one run.

All engines use the same weights, photographs, points and thresholds, each in a process of its own.

    python -m benchmarks.engine                       # mini, the demo photographs, 32x32 points
    python -m benchmarks.engine --model vit_b --photographs-from photos/ --photographs 1
    python -m benchmarks.engine --model vit_t --photographs 1
    python -m benchmarks.engine --model hiera_t --preset sam2 --photographs 1

The measured time spans from the encoded bytes of an image to the COCO run lengths of its masks. The benchmark prints
tables and writes them as Markdown and JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from statistics import mean

import torch

from benchmarks import load, peers, roofline
from benchmarks.machine import RESULTS, describe_machine
from benchmarks.processes import PEERS, PUBLISHED, EngineProcess, Measurement, Photograph, Setup
from maskmill.model.config import NetworkConfig
from maskmill.model.families import VARIANTS
from maskmill.model.optimize import half_precision, resolve_device
from maskmill.pipeline.config import PRESETS, GeneratorConfig
from maskmill.pipeline.images import decode_image
from maskmill.pipeline.prompts import plan_views

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
STEPS = ("decode", "encode", "prompt", "filter", "rle", "write")


@dataclass(frozen=True)
class Timing:
    """Measurements of all engines on one photograph, by engine name, and the size of the photograph in pixels."""

    photograph: str
    width: int
    height: int
    engines: dict[str, Measurement]


def main() -> None:
    """Parses the arguments, runs the benchmark, and prints and writes the report."""
    arguments = _arguments()
    device = resolve_device(arguments.device)
    variant = VARIANTS[arguments.model]
    config = replace(
        PRESETS[arguments.preset],
        points_per_side=arguments.points_per_side,
        # The published generator lacks these filters.
        max_coverage=None,
        drop_small_masks=False,
    )
    photographs = _photographs(arguments.photographs_from, arguments.photographs, arguments.points_per_side, device)
    # All models use masks that mini predicts, so the thresholds of all presets except mini's are adapted to them.
    by_rank = arguments.preset != "mini"
    if by_rank:
        config = load.thresholds_by_rank(config, [photograph.candidates for photograph in photographs])
    environment = describe_machine(device) | {
        "model": f"{variant.name}, {'embedded' if variant.name == 'mini' else 'random'} weights",
        "preset": f"{arguments.preset}, {config.points_per_side} x {config.points_per_side} points, thresholds "
        + ("by rank" if by_rank else "as they are"),
        "masks": "its own" if variant.name == "mini" else "mini's, put in place of what the mask decoder returns",
        "pred_iou_thresh": round(config.pred_iou_thresh, 4),
        "stability_score_thresh": round(config.stability_score_thresh, 4),
        "box_nms_thresh": round(config.box_nms_thresh, 4),
        "min_mask_region_area": config.min_mask_region_area,
        "runs": f"the best of {arguments.repeats}",
    }
    limits: dict[str, int] = {
        PUBLISHED[variant.family]: arguments.published,
        "transformers": arguments.transformers,
    }
    setup = Setup(variant, config, photographs, device, arguments.repeats, transformers=arguments.transformers > 0)
    precisions = ("exact", "fast", "half") if half_precision(device) else ("exact",)
    compat = () if variant.family == "sam2" else ("compat",)
    names = [*(name for name in limits if limits[name]), *compat, *precisions]
    with ExitStack() as stack:
        engines = {name: stack.enter_context(closing(EngineProcess(name, setup))) for name in names}
        timings = []
        for number, photograph in enumerate(photographs):
            chosen = [name for name in names if number < limits.get(name, len(photographs))]
            # The order of the engines alternates, so that changes of the clock rate do not favour one of them.
            ordered = chosen if number % 2 == 0 else reversed(chosen)
            measured = {name: engines[name].measure(number) for name in ordered}
            timings.append(Timing(photograph.name, photograph.width, photograph.height, measured))
            seconds = ", ".join(f"{name} {each.seconds:.2f} s" for name, each in measured.items())
            print(f"{photograph.name}: {seconds}", flush=True)
        dtypes = {name: engines[name].dtypes for name in precisions}
    peaks = {
        dtype: roofline.peak(device, dtype) for dtype in {dtype for step in dtypes.values() for dtype in step.values()}
    }
    work = [_least_work(photograph, variant, config) for photograph in photographs]
    report = _report(timings, work, names, dtypes, peaks, environment)
    print(report)
    arguments.out.mkdir(parents=True, exist_ok=True)
    stem = arguments.out / f"{date.today()}-engine-{variant.name}-{arguments.preset}-{device.type}"
    stem.with_suffix(".md").write_text(report)
    figures = {
        "environment": environment,
        "photographs": [asdict(timing) for timing in timings],
        "least_multiply_accumulates": work,
        "peak_multiply_accumulates_per_second": {_name(dtype): peak for dtype, peak in peaks.items()},
    }
    stem.with_suffix(".json").write_text(json.dumps(figures, indent=2) + "\n")
    print(f"written: {stem}.md, {stem}.json")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    models = [name for name, variant in VARIANTS.items() if variant.family in PUBLISHED]
    parser.add_argument("--model", choices=models, default="mini")
    parser.add_argument("--preset", choices=PRESETS, default="official", help="thresholds by rank, except of mini's")
    parser.add_argument("--points-per-side", type=int, default=32)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--photographs-from", type=Path, metavar="DIR", help="default: the demo's, from scikit-image")
    parser.add_argument("--photographs", type=int, metavar="N", help="the first N; default: all")
    parser.add_argument("--published", type=int, metavar="N", help="its generator on the first N of them; default: all")
    parser.add_argument(
        "--transformers", type=int, metavar="N", help="on the first N; default: 1 of SAM 1, otherwise 0"
    )
    parser.add_argument("--repeats", type=int, default=1, metavar="N", help="counted is the best of N runs")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="default: benchmarks/results")
    arguments = parser.parse_args()
    is_sam1 = VARIANTS[arguments.model].family == "sam1"
    if arguments.transformers and not is_sam1:
        parser.error(f"transformers generates no masks with {arguments.model}; choose another --model")
    if arguments.published is None:
        arguments.published = sys.maxsize
    if arguments.transformers is None:
        arguments.transformers = int(is_sam1)
    return arguments


def _photographs(
    folder: Path | None, count: int | None, points_per_side: int, device: torch.device
) -> list[Photograph]:
    if folder is None:
        import skimage.data

        from maskmill.jobs.demo import PHOTOGRAPHS

        bundled = Path(skimage.data.__file__).parent
        paths = [next(bundled.glob(f"{name}.*")) for name in PHOTOGRAPHS]
    else:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    find = load.CandidateFinder(points_per_side, device)
    photographs = []
    for path in paths[:count]:
        data = path.read_bytes()
        pixels_HW3 = decode_image(data, peers.DECODING).pixels
        photographs.append(Photograph(path.stem, data, pixels_HW3.shape[1], pixels_HW3.shape[0], find(pixels_HW3)))
    if not photographs:
        sys.exit(f"there are no photographs ({', '.join(SUFFIXES)}) in {folder}")
    return photographs


def _least_work(photograph: Photograph, variant: NetworkConfig, config: GeneratorConfig) -> dict[str, int]:
    """Returns the minimum number of multiply-accumulates by step of the network."""
    views = plan_views(photograph.height, photograph.width, config)
    prompts = sum(len(view.points_P2) for view in views)
    passing = round(prompts * photograph.candidates.prompts_passing(config.pred_iou_thresh))
    return {
        "encode": len(views) * roofline.image_encoder(variant),
        "prompt": prompts * roofline.prompt(variant) + passing * roofline.masks_of_prompt(variant),
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _report(
    timings: list[Timing],
    work: list[dict[str, int]],
    names: list[str],
    dtypes: Mapping[str, Mapping[str, torch.dtype]],
    peaks: dict[torch.dtype, float],
    environment: dict[str, str | float],
) -> str:
    ours = [name for name in names if name not in PEERS]
    lines = [f"# Engine against its peers, {date.today()}", ""]
    lines += [f"- {key}: {value}" for key, value in environment.items()]
    lines += ["", "Seconds per photograph, from its bytes to run lengths (masks found):", ""]
    lines += _table(["photograph", "pixels", *names], [_seconds_row(timing, names) for timing in timings])
    ratios = [[peer, *(f"{_ratio(timings, peer, name):.1f}" for name in ours)] for peer in names if peer not in ours]
    if ratios:
        lines += ["", "How many times faster, on the photographs that both did:", ""]
        lines += _table(["against", *ours], ratios)
    lines += ["", "Milliseconds per photograph by step, on average (*write*, to Parquet, is beyond the above):", ""]
    spent = {
        name: {step: mean(t.engines[name].milliseconds.get(step, 0.0) for t in timings) for step in STEPS}
        for name in dtypes
    }
    lines += _table(["engine", *STEPS], [[name, *(f"{spent[name][step]:.1f}" for step in STEPS)] for name in dtypes])
    lines += [
        "",
        "Share of the peak: the least multiply-accumulates that a step needs (benchmarks/roofline.py), by its time,",
        "against those of a large matrix product of the same dtype in this run. What *fast* does twice counts once:",
        "",
    ]
    rows = []
    for name in dtypes:
        for step in ("encode", "prompt"):
            least = mean(each[step] for each in work)
            dtype = dtypes[name][step]
            share = least / (spent[name][step] / 1000 * peaks[dtype])
            peak = f"{peaks[dtype] / 1e12:.3f} T/s"
            rows.append([name, step, _name(dtype), f"{least / 1e9:.0f} G", peak, f"{share:.0%}"])
    lines += _table(["engine", "step", "dtype", "least", "peak", "share"], rows)
    lines += ["", "Masks left after each filter, in *exact*:", ""]
    lines += _table(
        ["photograph", *timings[0].engines["exact"].left],
        [[timing.photograph, *map(str, timing.engines["exact"].left.values())] for timing in timings],
    )
    return "\n".join(lines) + "\n"


def _seconds_row(timing: Timing, names: list[str]) -> list[str]:
    measured = [timing.engines.get(name) for name in names]
    cells = [f"{each.seconds:.2f} ({each.masks})" if each else "" for each in measured]
    return [timing.photograph, f"{timing.width} x {timing.height}", *cells]


def _ratio(timings: list[Timing], peer: str, name: str) -> float:
    both = [timing.engines for timing in timings if peer in timing.engines]
    return sum(engines[peer].seconds for engines in both) / sum(engines[name].seconds for engines in both)


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


if __name__ == "__main__":
    main()
