"""`maskmill compare`: measures how far the masks of two runs agree."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from maskmill.jobs.console import aligned

LONGEST_SETTING = 40  # characters


def compare(
    run_a: Annotated[str, typer.Argument(metavar="RUN_A", help="The output of a run.", show_default=False)],
    run_b: Annotated[
        str, typer.Argument(metavar="RUN_B", help="The output of another run on the same images.", show_default=False)
    ],
    iou: Annotated[float, typer.Option(min=0, max=1, help="Two masks match if their IoU is at least this.")] = 0.9,
    limit: Annotated[int, typer.Option(min=0, help="Number of images to name of each kind; all are counted.")] = 10,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the figures to this JSON file.", show_default=False)
    ] = None,
) -> None:
    """Compare the masks of two runs on the same images.

    The runs may differ in precision, model, thresholds, version or machine. The masks of an image are matched one to
    one, the pair with the highest IoU first.

    Images are listed and not compared if only one run has them, if they failed, or if their bytes differ.

    Examples:

      maskmill compare out-exact/ out-fast/

      maskmill compare s3://bucket/out out/ --json agreement.json
    """
    # Imported here because torch and pyarrow take seconds to import and `--help` does not need them.
    from maskmill.annotations.pairs import index_run, pair_images
    from maskmill.evaluation.compare import compare_images, settings_that_differ, summarise
    from maskmill.jobs.progress import ProgressBar
    from maskmill.pipeline.errors import StorageError
    from maskmill.pipeline.storage import open_storage

    a, b = (index_run(open_storage(run)) for run in (run_a, run_b))
    pairs = pair_images(a, b, limit)
    with ProgressBar("comparing", "images", len(pairs)) as bar:
        total, worst = summarise(bar.track(compare_images(pairs, iou)), limit)
    report: dict[str, Any] = {
        "runs": [
            {
                "run": index.run.storage.uri,
                "shards": len(index.run.plan),
                "shards_done": index.shards_done,
                "images": len(index),
                "failed": index.failed,
            }
            for index in (a, b)
        ],
        "settings": settings_that_differ(a.run.settings, b.run.settings),
        "not_compared": {reason: asdict(images) for reason, images in pairs.left_out.items()},
        "iou": iou,
        "agreement": {**asdict(total), "shares": total.shares},
        "worst": [{"image_id": image_id, **asdict(image), "shares": image.shares} for image_id, image in worst],
    }
    typer.echo("\n".join(_lines(report)))
    if json_file:
        try:
            json_file.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise StorageError(f"{json_file}: cannot be written: {error.strerror or error}") from error


def _lines(report: dict[str, Any]) -> Iterator[str]:
    """The report as lines of text."""
    runs, total = report["runs"], report["agreement"]
    shares = total["shares"]
    yield from aligned(
        ("", "A", "B"),
        ("run", *(run["run"] for run in runs)),
        *((name.removeprefix("config."), *map(_short, values)) for name, values in report["settings"].items()),
        ("shards done", *(f"{run['shards_done']} of {run['shards']}" for run in runs)),
        ("images", *(f"{run['images']} ({run['failed']} failed)" for run in runs)),
        ("masks compared", str(total["masks_a"]), str(total["masks_b"])),
        ("of these matched", _percent(shares["matched_of_a"]), _percent(shares["matched_of_b"])),
    )
    yield ""
    yield from aligned(
        ("compared", f"{total['images']} images"),
        ("same count", f"{_percent(shares['same_count'])} of these, of masks"),
        ("identical", f"{_percent(shares['identical'])} of these, to the byte"),
        ("masks matched", f"{_percent(shares['matched'])}, at IoU >= {report['iou']:g}"),
        ("mean IoU", f"{_number(shares['mean_iou'])}, of the matched"),
    )
    left_out = {reason: images for reason, images in report["not_compared"].items() if images["images"]}
    if left_out:
        yield ""
        yield from aligned(
            ("not compared", "images"),
            *((reason, str(images["images"]), ", ".join(images["first"])) for reason, images in left_out.items()),
        )
    if report["worst"]:
        yield ""
        yield from aligned(
            ("agree least", "masks in A", "in B", "matched", "mean IoU"),
            *(
                (
                    image["image_id"],
                    *(str(image[name]) for name in ("masks_a", "masks_b", "matched")),
                    _number(image["shares"]["mean_iou"]),
                )
                for image in report["worst"]
            ),
        )


def _short(value: object) -> str:
    """The text of a setting, shortened if it is long, such as a grid of points."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= LONGEST_SETTING else f"{text[: LONGEST_SETTING - 3]}..."


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
