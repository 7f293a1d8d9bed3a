"""`maskmill generate`: generates masks for all images of a source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maskmill.jobs.log import LogFormat, LogFormatOption, log
from maskmill.jobs.run import (
    IMAGE_TIMEOUT,
    Address,
    Device,
    GpusPerWorker,
    ImageTimeout,
    Labels,
    MovedTo,
    Workers,
    check_device,
    run_job,
)

if TYPE_CHECKING:
    from maskmill.pipeline.config import DecodingConfig, RunConfig

# The options that replace fields of the preset's GeneratorConfig, by the names of these fields.
GENERATOR_OPTIONS = (
    "points_per_side",
    "pred_iou_thresh",
    "stability_score_thresh",
    "crop_n_layers",
    "min_mask_region_area",
    "use_m2m",
)


def generate(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Images, on disk or s3://. One of: a folder of images, of WebDataset tars or of Parquet files; one "
            "such file; a pattern of tars or Parquet files; a manifest (csv, jsonl or Parquet with a column uri). "
            "Links to files and folders are followed; no folder is read twice. Hidden files, system folders (@eaDir, "
            "__MACOSX ...) and label maps (*.seg.png) are left out and counted.",
            show_default=False,
        ),
    ],
    out: Annotated[
        str,
        typer.Argument(
            metavar="OUT",
            help="The output, on disk or s3://: a new or empty folder, or a run to resume.",
            show_default=False,
        ),
    ],
    include: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Only images with a matching path. Repeatable; fixed when a run begins. A pattern such as *.jpg, "
            "train or train/2* matches files, folders or tars at any depth, or with a leading slash relative to "
            "SOURCE; ** matches any number of folders.",
            show_default=False,
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN", help="Leave out images with a matching path; see --include.", show_default=False
        ),
    ] = None,
    model: Annotated[str, typer.Option(help="mini (embedded), or another model of `maskmill models`.")] = "mini",
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="Weights as published by the authors of the model or by Hugging Face. Not needed for mini.",
            show_default=False,
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="official, sa1b, sam2 or mini. Default: that of the model, see `maskmill models`.",
            show_default=False,
        ),
    ] = None,
    points_per_side: Annotated[int | None, typer.Option(help="Point prompts per side of the image's grid.")] = None,
    pred_iou_thresh: Annotated[float | None, typer.Option(help="Keep masks with a predicted IoU above this.")] = None,
    stability_score_thresh: Annotated[
        float | None, typer.Option(help="Keep masks with a stability score of at least this.")
    ] = None,
    crop_n_layers: Annotated[
        int | None, typer.Option(help="Layers of zoomed-in crops, in addition to the whole image.")
    ] = None,
    min_mask_region_area: Annotated[
        int | None, typer.Option(help="Remove holes and islands with fewer pixels than this.")
    ] = None,
    use_m2m: Annotated[
        bool | None,
        typer.Option(
            "--use-m2m/--no-m2m",
            help="Refine each mask once, with its own logits and its point as the prompt. Takes several times as long.",
            show_default=False,
        ),
    ] = None,
    precision: Annotated[
        str,
        typer.Option(
            help="exact: float32, the published masks. fast: bf16 or float16 pre-selects candidates; "
            "the masks that are kept are computed in float32. On a CPU where that saves no time, fast is exact. "
            "half: the encoder and, where that is faster, the decoder in bf16 or float16, for other masks: mini on a "
            "CPU found 85 % of the masks of exact (IoU 0.9), and as many masks in 20 % of 50 photographs. Without "
            "AMX, vit_b is 1.2 times as fast, mini not faster."
        ),
    ] = "exact",
    audit: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Process this share of the images again in exact precision, to check fast or half. 0.001: one in "
            "a thousand, and at least one image of each of the first ten shards. The rows of the run do not change.",
        ),
    ] = 0,
    bands: Annotated[
        str | None,
        typer.Option(
            metavar="R,G,B",
            help="Bands of a TIFF that are red, green and blue, counted from 1, such as 3,2,1. "
            "Default: the first three. Required for TIFFs with more than four bands.",
            show_default=False,
        ),
    ] = None,
    value_range: Annotated[
        str | None,
        typer.Option(
            metavar="LOW,HIGH",
            help="Sample values for black and white, such as 0,4095, or percentiles per band and image, such as "
            "2%,98%; for samples of more than 8 bits. Default: the full range of unsigned 16-bit samples. Required for "
            "signed, 32-bit and float samples.",
            show_default=False,
        ),
    ] = None,
    max_image_pixels: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Images with more pixels become failed rows. A decoded pixel takes 3 bytes. Default: 200000000.",
            show_default=False,
        ),
    ] = None,
    device: Device = "auto",
    images_per_shard: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Images per output part; fixed when a run begins. A tar is always one part. Default: up to 64.",
            show_default=False,
        ),
    ] = None,
    address: Address = None,
    workers: Workers = None,
    gpus_per_worker: GpusPerWorker = 1,
    labels: Labels = None,
    image_timeout: ImageTimeout = IMAGE_TIMEOUT,
    moved_to: MovedTo = None,
    log_format: LogFormatOption = LogFormat.text,
) -> None:
    """Generate masks for all images of SOURCE and write them as Parquet tables to OUT.

    OUT/masks/*.parquet has one row per mask, OUT/images/*.parquet one row per image.

    An image that cannot be read becomes a row of OUT/images with the reason; the run continues.

    Run the same command again to resume a stopped run: it reads the images that were planned when the run began.

    Examples:

      maskmill generate photos/ out/

      maskmill generate photos/ out/ --model vit_h --checkpoint sam_vit_h_4b8939.pth --preset sa1b

      maskmill generate "s3://bucket/train-*.tar" s3://bucket/out --address auto --precision fast
    """
    given = locals()
    log.use(log_format, run=out)
    generate_masks(
        source,
        out,
        include=include or (),
        exclude=exclude or (),
        model=model,
        checkpoint=checkpoint,
        preset=preset,
        overrides={name: given[name] for name in GENERATOR_OPTIONS if given[name] is not None},
        precision=precision,
        audit=audit,
        decoding=decoding_config(bands, value_range, max_image_pixels),
        device=device,
        images_per_shard=images_per_shard,
        address=address,
        workers=workers,
        gpus_per_worker=gpus_per_worker,
        labels=labels or (),
        image_timeout=image_timeout,
        moved_to=moved_to,
    )


def generate_masks(
    source: str,
    out: str,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    model: str = "mini",
    checkpoint: Path | None = None,
    preset: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    precision: str = "exact",
    audit: float = 0,
    decoding: DecodingConfig | None = None,
    device: str = "auto",
    images_per_shard: int | None = None,
    address: str | None = None,
    workers: int | None = None,
    gpus_per_worker: float = 1,
    labels: Sequence[str] = (),
    image_timeout: float = IMAGE_TIMEOUT,
    moved_to: str | None = None,
) -> None:
    """Starts or resumes a run, with a progress bar on stderr and a summary on stdout.

    `overrides` replaces fields of the preset's GeneratorConfig. A resumed run reads its images from `moved_to` instead
    of `source`, if given. Raises MaskmillError.
    """
    # Imported here because torch and pyarrow take seconds to import and `--help` does not need them.
    from maskmill.model.checkpoint import load_model
    from maskmill.pipeline.audit import FIRST_SHARDS, Audit
    from maskmill.pipeline.engine import GeneratorFactory
    from maskmill.pipeline.errors import ConfigError
    from maskmill.pipeline.job import Job
    from maskmill.pipeline.ledger import Identity, open_run
    from maskmill.pipeline.placement import parse_labels
    from maskmill.pipeline.plan import PLAN_KEY
    from maskmill.pipeline.sources import NameFilter, open_planned, open_source, source_uri
    from maskmill.pipeline.storage import open_storage

    names = NameFilter(tuple(include), tuple(exclude))
    resumed = open_storage(out).exists(PLAN_KEY)
    if moved_to is not None and not resumed:
        raise ConfigError(f"--source is for resuming a run, but {out} has no run: give {moved_to} as SOURCE")
    new_source = None if resumed else open_source(source, names)
    config = run_config(model, preset, overrides or {}, precision)
    if decoding is not None:
        config = replace(config, decoding=decoding)
    check_device(device)
    selectors = [parse_labels(text) for text in labels]
    # Checked before any worker starts, so that a wrong checkpoint fails at once.
    weights_sha256 = load_model(model, checkpoint).sha256
    storage = open_storage(out, make=True)
    identity = Identity(source_uri(source), weights_sha256, config, names)
    ledger, plan = open_run(storage, identity, new_source, images_per_shard)
    plan = plan.at(moved_to)
    checkpoint = checkpoint and checkpoint.absolute()
    engine = GeneratorFactory(config, checkpoint, weights_sha256, device, gpus_per_worker)
    left = plan.without(ledger.committed())
    audited = None
    if audit and config.precision == "exact":
        log.write("info", "there is nothing to audit: the run has exact precision")
    elif audit:
        exact = replace(engine, config=replace(config, precision="exact"))
        audited = Audit(audit, frozenset(shard.index for shard in islice(left, FIRST_SHARDS)), exact, config.precision)
    job = Job(open_planned(plan.source), ledger, engine, config.decoding, audit=audited)
    run_job(job, left, device, address, image_timeout, gpus_per_worker, selectors, workers)


def run_config(model: str, preset: str | None, overrides: Mapping[str, Any], precision: str) -> RunConfig:
    """The configuration given by the options. Raises ConfigError if an option is invalid."""
    from maskmill.model.families import find_variant
    from maskmill.pipeline.config import RunConfig, check_model, generator_config
    from maskmill.pipeline.errors import ConfigError

    variant = find_variant(model)
    preset = preset or variant.default_preset
    generator = generator_config(preset, overrides)
    check_model(generator, variant)
    if precision not in ("exact", "fast", "half"):
        raise ConfigError(f"there is no precision {precision!r}; choose exact, fast or half")
    return RunConfig(model, preset, generator, precision)


def decoding_config(bands: str | None, value_range: str | None, max_image_pixels: int | None) -> DecodingConfig:
    """The decoding given by the options. Raises ConfigError if an option is invalid."""
    from maskmill.pipeline.config import DecodingConfig, ValueRange, parse_bands

    return DecodingConfig(
        max_image_pixels or DecodingConfig.max_image_pixels,
        None if bands is None else parse_bands(bands),
        None if value_range is None else ValueRange.parse(value_range),
    )
