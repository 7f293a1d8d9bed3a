"""`maskmill plan`: counts a source, and estimates the time and price of a run over it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maskmill.jobs.generate import run_config
from maskmill.jobs.run import Device, check_device

if TYPE_CHECKING:
    from maskmill.pipeline.config import RunConfig
    from maskmill.pipeline.estimate import Sample
    from maskmill.pipeline.inventory import Inventory
    from maskmill.pipeline.placement import Machine, Placement
    from maskmill.pipeline.probe import Probe

SAMPLE_SHARDS = 16  # a probe takes its images from so many shards
SAMPLE_PARTS = 256  # of a former run
GET_PER_IMAGE = ("folder", "manifest")  # kinds of sources; the others take one request per shard
KEYS_PER_LISTING = 1000  # S3


def plan(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="As for generate.", show_default=False)],
    probe: Annotated[
        int, typer.Option(min=0, help="Process so many images of SOURCE on this machine to measure the speed.")
    ] = 0,
    former: Annotated[
        str | None,
        typer.Option(
            "--run",
            metavar="OUT",
            help="Take the speed from this run over similar images instead of a probe.",
            show_default=False,
        ),
    ] = None,
    gpus: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of GPUs, each as fast as the device that was measured. Default: the workers of this machine, "
            "one per GPU or, without a GPU, one per two cores; with --run, 1.",
            show_default=False,
        ),
    ] = None,
    price: Annotated[float | None, typer.Option(min=0, help="Price of one GPU for an hour.")] = None,
    include: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="As for generate.", show_default=False)
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="As for generate.", show_default=False)
    ] = None,
    model: Annotated[str, typer.Option(help="The model to probe, as for generate.")] = "mini",
    checkpoint: Annotated[Path | None, typer.Option(help="As for generate.", show_default=False)] = None,
    preset: Annotated[str | None, typer.Option(help="As for generate.", show_default=False)] = None,
    precision: Annotated[str, typer.Option(help="As for generate.")] = "exact",
    device: Device = "auto",
    images_per_shard: Annotated[int | None, typer.Option(min=1, help="As for generate.", show_default=False)] = None,
    save: Annotated[
        str | None,
        typer.Option(
            metavar="OUT",
            help="Write the estimate to OUT, the output of the coming run, for `maskmill status OUT` to compare.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Count the images of SOURCE, and estimate time, GPU hours, requests, output size and price before a run.

    Without --probe or --run it only counts. Times are given with an interval that holds in nine of ten samples.

    Nothing is written except a temporary folder, and OUT/_estimate.json with --save OUT.

    Examples:

      maskmill plan photos/ --probe 64

      maskmill plan s3://bucket/photos --run s3://bucket/former --gpus 64 --price 1.20
    """
    # Imported here because torch and pyarrow take seconds to import and `--help` does not need them.
    from maskmill.pipeline.errors import ConfigError
    from maskmill.pipeline.inventory import take_inventory
    from maskmill.pipeline.plan import shard_size
    from maskmill.pipeline.sources import NameFilter, open_source

    if probe and former:
        raise ConfigError("--probe and --run exclude each other: the speed comes from one of them")
    if (gpus or save or price is not None) and not (probe or former):
        raise ConfigError(
            "--gpus, --price and --save need a measured speed: add --probe 64, or --run with a former run"
        )
    check_device(device)
    config = run_config(model, preset, {}, precision)
    opened = open_source(source, NameFilter(tuple(include or ()), tuple(exclude or ())))
    inventory = take_inventory(opened, images_per_shard or shard_size(opened), SAMPLE_SHARDS)
    report: dict[str, Any] = {
        "source": opened.uri,
        "kind": inventory.kind,
        "images": inventory.images,
        "images_are_estimated": False,
        "shards": inventory.shards,
        "bytes": inventory.bytes,
    }
    if probe:
        probed = _probe(opened, inventory, config, checkpoint, device, probe)
        report |= _measured(inventory, probed, gpus or _placement(device).workers, price)
    elif former:
        report |= _from_run(inventory, former, gpus or 1, price)
    if save:
        _save(report, save)
    typer.echo(json.dumps(report, indent=2) if as_json else "\n".join(_lines(report)))


def _probe(
    source: Any, inventory: Inventory, config: RunConfig, checkpoint: Path | None, device: str, images: int
) -> Probe:
    import cv2
    import torch

    from maskmill.model.checkpoint import load_model
    from maskmill.pipeline.engine import GeneratorFactory
    from maskmill.pipeline.job import Job
    from maskmill.pipeline.ledger import Ledger
    from maskmill.pipeline.probe import run_probe
    from maskmill.pipeline.storage import LocalStorage

    threads = _placement(device).threads_on(_this_machine())  # as a worker of a run has
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    engine = GeneratorFactory(config, checkpoint, load_model(config.model, checkpoint).sha256, device)
    job = Job(source, Ledger(LocalStorage(Path()), ""), engine, config.decoding)
    return run_probe(job, inventory.sample, images)


def _this_machine() -> Machine:
    import os

    import torch

    return {"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}


def _placement(device: str) -> Placement:
    """The workers of a run on this machine."""
    from maskmill.pipeline.placement import place

    return place([_this_machine()], device)


def _measured(inventory: Inventory, probe: Probe, workers: int, price: float | None) -> dict[str, Any]:
    report = _estimate(inventory, probe.sample, probe.image_bytes, probe.start_seconds, workers, price)
    images = report["images"]
    return report | {
        "output_bytes": round(probe.output_bytes * images),
        "output_requests": round(probe.output_requests * inventory.shards),
    }


def _from_run(inventory: Inventory, former: str, workers: int, price: float | None) -> dict[str, Any]:
    import random

    from maskmill.pipeline.errors import ConfigError
    from maskmill.pipeline.estimate import Sample
    from maskmill.pipeline.finished import open_finished_run
    from maskmill.pipeline.parts import list_parts
    from maskmill.pipeline.storage import open_storage

    run = open_finished_run(open_storage(former))
    if inventory.images is None:
        raise ConfigError("the number of images in tars is unknown before they are read: use --probe instead of --run")
    parts = list_parts(run.storage, "masks")
    chosen = set(random.Random(0).sample(parts, min(len(parts), SAMPLE_PARTS)))
    sample = Sample.of(footer for _, footer in run.footers(skip=set(parts) - chosen))
    if not sample.images:
        raise ConfigError(f"{former}: no part of this run says how long it took: use --probe")
    report = _estimate(inventory, sample, None, 0.0, workers, price)
    written = sum(item.size for table in ("masks/", "images/") for item in run.storage.list(table))
    per_image = written / len(parts) / (sample.images / len(sample.part_images))
    return report | {"output_bytes": round(per_image * report["images"])}


def _estimate(
    inventory: Inventory,
    sample: Sample,
    image_bytes: float | None,
    start_seconds: float,
    workers: int,
    price: float | None,
) -> dict[str, Any]:
    from maskmill.pipeline.errors import ConfigError
    from maskmill.pipeline.estimate import duration, fit, seconds_per_image

    if not sample.images:
        raise ConfigError("no image of the sample could be processed: see `maskmill generate` on a few of them")
    images = inventory.images
    if images is None:
        if not inventory.bytes or not image_bytes:
            raise ConfigError("the number of images cannot be estimated: give the folder of the tars as SOURCE")
        images = max(1, round(inventory.bytes / image_bytes))
    per_image = seconds_per_image(sample)
    seconds = duration(per_image, images, inventory.shards, workers)
    gpu_hours = per_image.times(images / 3600)
    fitted = fit(sample)
    by_image = inventory.kind in GET_PER_IMAGE
    return {
        "images": images,
        "images_are_estimated": inventory.images is None,
        "sample_images": sample.images,
        "sample_parts": len(sample.part_images),
        "seconds_per_image": asdict(per_image),
        "fit": fitted and asdict(fitted),
        "masks_per_image": float(sample.masks.mean()) if len(sample.masks) else 0.0,
        "workers": workers,
        "start_seconds": start_seconds,
        "seconds": asdict(seconds),
        "gpu_hours": asdict(gpu_hours),
        "price": None if price is None else asdict(gpu_hours.times(price)),
        "source_requests": (images if by_image else inventory.shards) + -(-images // KEYS_PER_LISTING),
    }


def _save(report: dict[str, Any], out: str) -> None:
    from maskmill.pipeline.estimate import Estimate, Interval
    from maskmill.pipeline.storage import open_storage

    per_image, seconds = Interval(**report["seconds_per_image"]), Interval(**report["seconds"])
    Estimate(per_image, seconds, report["workers"]).write(open_storage(out, make=True))


def _lines(report: dict[str, Any]) -> Iterator[str]:
    """The report as lines of text."""
    about = "about " if report["images_are_estimated"] else ""
    images = "an unknown number of" if report["images"] is None else f"{about}{report['images']}"
    size = "unknown" if report["bytes"] is None else _bytes(report["bytes"])
    yield f"source    {report['source']} ({report['kind']})"
    yield f"images    {images} images in {report['shards']} shards"
    yield f"size      {size}"
    if "seconds" not in report:
        yield "time      unknown: add --probe 64 to measure the speed on this machine"
        return
    yield f"measured  {report['sample_images']} images of {report['sample_parts']} shards"
    yield f"speed     {_interval(report['seconds_per_image'], '{:.3g}'.format)} s per image on one worker"
    if fit := report["fit"]:
        terms = f"{fit['constant']:.3g} + {fit['per_megapixel']:.3g} per megapixel + {fit['per_mask']:.3g} per mask"
        yield f"steps     {terms} s, which explains {100 * fit['explained']:.0f} % of the differences between images"
    workers = f"{report['workers']} worker{'' if report['workers'] == 1 else 's'}"
    start = f", after a start of {report['start_seconds']:.0f} s" if report["start_seconds"] else ""
    yield f"time      {_interval(report['seconds'], _clock)} with {workers}{start}"
    yield f"GPU hours {_interval(report['gpu_hours'], '{:.3g}'.format)}"
    if report["price"]:
        yield f"price     {_interval(report['price'], '{:.2f}'.format)}"
    yield f"output    {_bytes(report['output_bytes'])}, {report['masks_per_image']:.1f} masks per image"
    yield f"requests  {report['source_requests']} to the source" + (
        f", {report['output_requests']} to the output" if "output_requests" in report else ""
    )


def _interval(value: dict[str, float], text: Callable[[float], str]) -> str:
    return f"{text(value['mean'])} ({text(value['low'])} to {text(value['high'])})"


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _bytes(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
