"""`maskmill evaluate`: measures a model on annotated images."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maskmill.jobs.extras import require_extra
from maskmill.jobs.generate import run_config
from maskmill.jobs.run import Device, MovedTo

if TYPE_CHECKING:
    from maskmill.annotations import AnnotatedImages
    from maskmill.evaluation.image import ImageScores
    from maskmill.evaluation.run import EvaluatorFactory

# More processes need more memory than a laptop has.
MAX_DEFAULT_PROCESSES = 4


def evaluate(
    data: Annotated[
        list[str],
        typer.Option(
            help="Annotated images: COCO instances (.json), a folder as SA-1B or BSDS500 has them, or a maskmill run. "
            "Repeatable: each data set is measured by itself.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="Folder for evaluation.json and calibration.png; with several data sets, a folder in it for each.",
            show_default=False,
        ),
    ],
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of the photographs, if they are not beside their annotations.", show_default=False),
    ] = None,
    moved_to: MovedTo = None,
    model: Annotated[str, typer.Option(help="mini (embedded), or another model of `maskmill models`.")] = "mini",
    checkpoint: Annotated[
        Path | None, typer.Option(help="Weights, as for `maskmill generate`.", show_default=False)
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Preset for the automatic masks of --only recall. Default: the model's own.", show_default=False
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="proposals, clicks, boxes, recall, baselines, calibration or edges. Repeatable. Default: all.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Use only the first LIMIT images.", show_default=False)
    ] = None,
    min_share: Annotated[
        float,
        typer.Option(min=0, max=1, help="Leave out segments that cover less than this share of their image."),
    ] = 0.005,
    proposal_points: Annotated[
        int, typer.Option(min=1, help="Object proposals: points per side of the grid (published: 64).")
    ] = 64,
    precision: Annotated[
        str,
        typer.Option(
            help="exact: float32, the published masks. fast: bf16 or float16 pre-selects candidates; "
            "the masks that are kept are computed in float32. half: the encoder and, where that is faster, the decoder "
            "in bf16 or float16."
        ),
    ] = "fast",
    device: Device = "auto",
    processes: Annotated[
        int | None,
        typer.Option(
            min=1, help="Number of processes. Default: one per core, at most four; one on a GPU.", show_default=False
        ),
    ] = None,
) -> None:
    """Measure a model on annotated images: print tables, write JSON and a calibration plot.

    Measures: average recall of object proposals; mean IoU for clicks and boxes; recall of the automatic masks, compared
    with baselines without a model; predicted against true IoU; edges, if the annotations cover whole images.

    An image that cannot be read is listed and left out.

    Examples:

      maskmill evaluate --data bsds500-val --out report/

      maskmill evaluate --data bsds500-val --data ade20k/ --out report/

      maskmill evaluate --data instances_val2017.json --images val2017 --out report/ --limit 100

      maskmill evaluate --data bsds500-val --out report/ --model vit_b --checkpoint sam_vit_b_01ec64.pth --only clicks
    """
    require_extra("evaluate")
    # Imported here because torch and pyarrow take seconds to import and `--help` does not need them.
    from maskmill.annotations import open_annotations
    from maskmill.evaluation.figures import summarise
    from maskmill.evaluation.image import MEASURES, Settings
    from maskmill.evaluation.report import tables, write_report
    from maskmill.evaluation.run import EvaluationError, EvaluatorFactory
    from maskmill.jobs.console import plain_console
    from maskmill.model.checkpoint import load_model
    from maskmill.model.optimize import resolve_device
    from maskmill.pipeline.errors import ConfigError, StorageError

    config = run_config(model, preset, {}, precision)
    for name in only or ():
        if name not in MEASURES:
            raise ConfigError(f"there is no measure {name!r}; choose of {', '.join(MEASURES)}")
    settings = Settings(tuple(name for name in MEASURES if not only or name in only), min_share, proposal_points)
    data_sets = [open_annotations(path, images, moved_to) for path in data]
    # Checked before any process starts, so that a wrong device or checkpoint fails at once.
    on_gpu = resolve_device(device).type == "cuda"
    weights_sha256 = load_model(model, checkpoint).sha256
    processes = processes or (1 if on_gpu else min(os.cpu_count() or 1, MAX_DEFAULT_PROCESSES))
    folders = [out]
    if len(data) > 1:
        folders = [out / f"{number}-{annotated.name}" for number, annotated in enumerate(data_sets, 1)]
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{folder}: cannot be created: {error.strerror or error}") from error
    make_evaluator = EvaluatorFactory(config, checkpoint, device, settings)
    console = plain_console()
    for path, annotated, folder in zip(data, data_sets, folders, strict=True):
        count = len(annotated) if limit is None else min(limit, len(annotated))
        started = time.monotonic()
        scores, skipped = _measure(make_evaluator, annotated, count, processes)
        if not scores:
            raise EvaluationError(f"{path}: none of {count} images could be read")
        figures = summarise(scores, settings.measures)
        facts: dict[str, Any] = {
            "model": {"name": model, "checkpoint": str(checkpoint or "embedded"), "sha256": weights_sha256},
            "data": {"name": annotated.name, "images": len(scores), "skipped": skipped},
            "settings": {
                **asdict(settings),
                "precision": precision,
                "preset": config.preset,
                "generator": asdict(config.generator),
            },
        }
        paths = write_report(folder, facts, figures, f"{model} on {annotated.name}")
        for table in tables(figures):
            console.print(table)
        seconds = time.monotonic() - started
        console.print(f"model     {model}, sha256 {weights_sha256[:12]}")
        console.print(f"images    {len(scores)} of {annotated.name} ({len(skipped)} skipped), {seconds:.0f} s")
        console.print(f"report    {', '.join(map(str, paths))}")


def _measure(
    make_evaluator: EvaluatorFactory, annotated: AnnotatedImages, count: int, processes: int
) -> tuple[Sequence[ImageScores], Sequence[str]]:
    """The scores, and the reasons for skipped images, which are also printed on stderr. Shows a progress bar."""
    from maskmill.evaluation.run import Skipped, measure_images
    from maskmill.jobs.progress import ProgressBar

    scores: list[ImageScores] = []
    skipped: list[str] = []
    with ProgressBar("evaluating", "images", count) as bar:
        for result in bar.track(measure_images(make_evaluator, annotated, count, processes)):
            if isinstance(result, Skipped):
                skipped.append(result.reason)
                bar.print(f"maskmill: skipped: {result.reason}")
            else:
                scores.append(result)
    return scores, skipped
