"""Compares the run time of the maskmill engine with segment_anything or sam2, and transformers, in one run.

All engines use the same weights, photographs, points and thresholds.

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
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from functools import partial
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

import torch

from benchmarks import load, peers, roofline
from benchmarks.machine import RESULTS, describe_machine
from benchmarks.peers import Engine, EngineFactory
from maskmill.filters.names import FILTERS
from maskmill.model.checkpoint import load_model
from maskmill.model.config import NetworkConfig
from maskmill.model.families import VARIANTS
from maskmill.model.families.sam1.config import SamConfig
from maskmill.model.families.sam2.config import Sam2Config
from maskmill.model.network import Network
from maskmill.model.optimize import half_precision, keep_freed_memory, optimize, resolve_device
from maskmill.pipeline.config import PRESETS, GeneratorConfig
from maskmill.pipeline.images import decode_image
from maskmill.pipeline.prompts import plan_views
from maskmill.pipeline.records import ImageMasks, ImageResult, Shard
from maskmill.pipeline.table import encode_part
from testing.networks import random_network, randomise

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base
    from transformers import SamModel

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
# The package with the published generator, by family.
PUBLISHED = {"sam1": "segment_anything", "mini": "segment_anything", "mobile_sam": "mobile_sam", "sam2": "sam2"}
PEERS = (*PUBLISHED.values(), "transformers")
STEPS = ("decode", "encode", "prompt", "filter", "rle", "write")
WARM_UP_POINTS_PER_SIDE = 8  # one batch of the published generator


@dataclass(frozen=True)
class Photograph:
    """An encoded image, its size in pixels and the candidate masks that `mini` predicts for it."""

    name: str
    data: bytes
    width: int
    height: int
    candidates: load.Candidates


@dataclass(frozen=True)
class Timing:
    """Measurements of all engines on one photograph, and the size of the photograph in pixels."""

    photograph: str
    width: int
    height: int
    # By engine name.
    seconds: dict[str, float] = field(default_factory=dict)
    masks: dict[str, int] = field(default_factory=dict)
    # By precision, then by step.
    milliseconds: dict[str, dict[str, float]] = field(default_factory=dict)
    # Remaining masks after each filter, in *exact* precision.
    left: dict[str, int] = field(default_factory=dict)


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
    replay = None if variant.name == "mini" else load.Replay(variant, device)
    factories, dtypes = _engines(variant, [name for name in limits if limits[name]], device, replay)
    _warm_up(factories, config, photographs[0], replay)
    engines = {name: factory(config) for name, factory in factories.items()}
    timings = []
    for number, photograph in enumerate(photographs):
        chosen = {name: engine for name, engine in engines.items() if number < limits.get(name, len(photographs))}
        # The order of the engines alternates, so that changes of the clock rate do not favour one of them.
        ordered = chosen if number % 2 == 0 else dict(reversed(chosen.items()))
        timings.append(_measure(photograph, ordered, replay, arguments.repeats, device))
        print(timings[-1], flush=True)
    peaks = {
        dtype: roofline.peak(device, dtype) for dtype in {dtype for step in dtypes.values() for dtype in step.values()}
    }
    work = [_least_work(photograph, variant, config) for photograph in photographs]
    report = _report(timings, work, list(engines), dtypes, peaks, environment)
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


def _engines(
    variant: NetworkConfig, wanted: list[str], device: torch.device, replay: load.Replay | None
) -> tuple[dict[str, EngineFactory], dict[str, dict[str, torch.dtype]]]:
    """Creates the engines of the wanted peers and of maskmill, all with the same weights.

    The second result is the dtype of most matrix multiplications of maskmill, by precision and step.
    """
    factories: dict[str, EngineFactory] = {}
    if isinstance(variant, Sam2Config):
        network, published = _sam2_networks(variant)
        if "sam2" in wanted:
            factories["sam2"] = peers.sam2(published, device, replay)
    else:
        network, twin = _networks(variant, twin="transformers" in wanted)
        published_name = PUBLISHED[variant.family]
        if published_name in wanted:
            factories[published_name] = peers.segment_anything(network, device, replay)
        if twin is not None:
            factories["transformers"] = peers.transformers(twin, variant.image_size, device, replay)
        factories["compat"] = peers.compat(network, device, replay)
    dtypes = {}
    for precision in ("exact", "fast", "half") if half_precision(device) else ("exact",):
        optimized = optimize(network, precision, device)
        factories[precision] = partial(peers.Maskmill, optimized, replay)
        prompts = optimized.screen_dtype or optimized.decoder_dtype
        dtypes[precision] = {"encode": optimized.encoder_dtype, "prompt": prompts}
    return factories, dtypes


def _networks(variant: NetworkConfig, twin: bool) -> tuple[Network, SamModel | None]:
    """Creates our network, with the packaged weights of `mini` or random ones, and its twin in transformers."""
    if variant.name == "mini":
        return load_model("mini", None).network, None
    if not twin:
        return random_network(variant), None
    from testing.hugging_face import random_hugging_face

    assert isinstance(variant, SamConfig), "only the networks of sam1 have a twin in transformers"

    network = random_hugging_face(variant)
    with tempfile.TemporaryDirectory() as folder:
        network.save_pretrained(folder)
        return load_model(variant.name, Path(folder) / "model.safetensors").network, network


def _sam2_networks(variant: Sam2Config) -> tuple[Network, SAM2Base]:
    """Creates our network and that of sam2, with the same random weights."""
    from testing.sam2_oracles import published_sam2

    network = published_sam2(variant)
    randomise(network)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sam2.pt"
        torch.save({"model": network.state_dict()}, path)
        return load_model(variant.name, path).network, network


def _warm_up(
    factories: dict[str, EngineFactory], config: GeneratorConfig, photograph: Photograph, replay: load.Replay | None
) -> None:
    """Runs each engine on a few points: the first run includes buffer allocation and kernel selection."""
    if replay:
        replay.show(photograph.candidates)
    few = min(WARM_UP_POINTS_PER_SIDE, config.points_per_side or WARM_UP_POINTS_PER_SIDE)
    for factory in factories.values():
        factory(replace(config, points_per_side=few))(photograph.data)


def _measure(
    photograph: Photograph,
    engines: dict[str, Engine],
    replay: load.Replay | None,
    repeats: int,
    device: torch.device,
) -> Timing:
    timing = Timing(photograph.name, photograph.width, photograph.height)
    if replay:
        replay.show(photograph.candidates)
    clock = partial(roofline.synchronized_clock, device)
    for name, engine in engines.items():
        if name in PEERS:
            peers.return_freed_memory()
        else:
            keep_freed_memory()
        seconds = []
        for _ in range(repeats):
            start = clock()
            timing.masks[name] = len(engine(photograph.data))
            seconds.append(clock() - start)
        timing.seconds[name] = min(seconds)
        if isinstance(engine, peers.Maskmill):
            timing.milliseconds[name] = _steps(engine, photograph, device)
            assert engine.masks is not None
            if name == "exact":
                timing.left.update(_left(engine.masks))
    return timing


def _steps(engine: peers.Maskmill, photograph: Photograph, device: torch.device) -> dict[str, float]:
    """Returns the milliseconds of each step in the last run.

    On a GPU, these are measured in an additional run that synchronises with the device after every step.
    """
    if device.type != "cpu":
        engine.clock = partial(roofline.synchronized_clock, device)
        engine(photograph.data)
        engine.clock = time.perf_counter
    assert engine.masks is not None
    with engine.timer.step("write"):
        encode_part(Shard(0, ""), [ImageResult("image", "", None, engine.masks, {}, "ok")], identity="")
    return engine.timer.milliseconds


def _left(masks: ImageMasks) -> dict[str, int]:
    """Counts the masks before the filters and after each filter."""
    left = {"candidates": len(masks) + sum(masks.dropped.values())}
    remaining = left["candidates"]
    for name in FILTERS:
        remaining -= masks.dropped[name]
        left[name] = remaining
    return left


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
    dtypes: dict[str, dict[str, torch.dtype]],
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
        name: {step: mean(t.milliseconds[name].get(step, 0.0) for t in timings) for step in STEPS} for name in dtypes
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
        ["photograph", *timings[0].left],
        [[timing.photograph, *(str(count) for count in timing.left.values())] for timing in timings],
    )
    return "\n".join(lines) + "\n"


def _seconds_row(timing: Timing, names: list[str]) -> list[str]:
    cells = [f"{timing.seconds[name]:.2f} ({timing.masks[name]})" if name in timing.seconds else "" for name in names]
    return [timing.photograph, f"{timing.width} x {timing.height}", *cells]


def _ratio(timings: list[Timing], peer: str, name: str) -> float:
    both = [timing for timing in timings if peer in timing.seconds]
    return sum(timing.seconds[peer] for timing in both) / sum(timing.seconds[name] for timing in both)


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


if __name__ == "__main__":
    main()
