"""Options, progress bar and summary of the commands that process shards."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from maskmill.jobs.log import log

if TYPE_CHECKING:
    from maskmill.pipeline.config import Precision
    from maskmill.pipeline.job import Job
    from maskmill.pipeline.ledger import Ledger
    from maskmill.pipeline.placement import LabelSelector
    from maskmill.pipeline.plan import Plan
    from maskmill.pipeline.records import Shard
    from maskmill.pipeline.summary import Summary

IMAGE_TIMEOUT = 1800.0

RunOutput = Annotated[
    str, typer.Argument(metavar="OUT", help="The output of a run, finished or not.", show_default=False)
]
MovedTo = Annotated[
    str | None,
    typer.Option(
        "--source",
        metavar="NEW",
        help="New address of SOURCE if it has moved: its folder, file or pattern.",
        show_default=False,
    ),
]

Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Address = Annotated[
    str | None,
    typer.Option(help="Address of a Ray cluster (host:port or auto). Default: this machine.", show_default=False),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Number of workers. A cluster with an autoscaler adds machines for them. Default: as many as its machines "
        "have room for.",
        show_default=False,
    ),
]
GpusPerWorker = Annotated[
    float,
    typer.Option(min=0.01, max=1, help="GPUs of a worker: 0.5 places two workers on each GPU. Each loads the model."),
]
Labels = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE,...",
        help="Only machines with these Ray labels, such as ray.io/accelerator-type=in(L4,A10G). Repeat it for a second "
        "choice if no machine of the first has room; an empty one matches every machine.",
        show_default=False,
    ),
]
ImageTimeout = Annotated[
    float,
    typer.Option(
        min=10,
        help="Seconds without progress before a worker is replaced. After three times the image is quarantined.",
    ),
]


def check_device(device: str) -> None:
    """Raises ConfigError for anything but auto, cpu and cuda."""
    from maskmill.pipeline.errors import ConfigError

    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"there is no device {device!r}; choose auto, cpu or cuda")


def run_job(
    job: Job,
    shards: Plan | list[Shard],
    device: str = "auto",
    address: str | None = None,
    image_timeout: float = IMAGE_TIMEOUT,
    gpus_per_worker: float = 1,
    labels: Sequence[LabelSelector] = (),
    workers: int | None = None,
) -> None:
    """Processes shards, with a progress bar on stderr and a summary of the whole run on stdout.

    Raises what `cluster.run` raises. After a signal it prints a line on stderr and raises typer.Exit.
    """
    from maskmill.pipeline.errors import RunFailedError, RunStoppedError, StorageError

    started = time.monotonic()
    try:
        options = (device, address, image_timeout, gpus_per_worker, labels, workers)
        summary = _run_with_progress_bar(job, shards, *options) if len(shards) else None
    except RunStoppedError as stopped:
        log.write("info", str(stopped))
        raise typer.Exit(128 + stopped.signal_number) from None
    except StorageError as error:
        raise RunFailedError(f"{error}. Finished work is kept: run the same command again to resume") from error
    _print_summary(job.ledger, sum(summary.images.values()) if summary else 0, time.monotonic() - started)
    if job.audit:
        _print_audit(summary, job.audit.precision)


def _run_with_progress_bar(
    job: Job,
    shards: Plan | list[Shard],
    device: str,
    address: str | None,
    image_timeout: float,
    gpus_per_worker: float,
    labels: Sequence[LabelSelector],
    workers: int | None,
) -> Summary:
    """Returns what the driver did. The bar counts images if their number is known, otherwise shards."""
    from maskmill.jobs.progress import ProgressBar
    from maskmill.pipeline import cluster
    from maskmill.pipeline.progress import Progress as ImageProgress

    ended = masks = failed = 0
    n_images = _count_images(shards)
    unit = "shards" if n_images is None else "images"
    with ProgressBar("starting", unit, len(shards) if n_images is None else n_images) as bar:
        started = time.monotonic()

        def on_progress(progress: ImageProgress) -> None:
            nonlocal ended, masks, failed
            ended += 1
            masks += progress.n_masks
            failed += progress.status != "ok"
            rate = ended / (time.monotonic() - started)
            figures = f"{rate:.2f} images/s  {masks} masks" + (f"  {failed} failed" if failed else "")
            bar.update(description="generating", figures=figures, advance=1 if unit == "images" else 0)

        def on_commit(_: object) -> None:
            bar.update(advance=0 if unit == "images" else 1)

        options = (device, address, image_timeout, gpus_per_worker, labels, workers)
        return cluster.run(job, shards, on_progress, on_commit, *options)


def _count_images(shards: Plan | list[Shard]) -> int | None:
    if isinstance(shards, list):
        listed = [len(shard.image_ids) for shard in shards if shard.image_ids is not None]
        return sum(listed) if len(listed) == len(shards) else None
    return shards.n_images


def _print_summary(ledger: Ledger, ended: int, seconds: float) -> None:
    """Prints the counts, and queries and commands that can be copied and run."""
    from maskmill.pipeline.finished import open_finished_run
    from maskmill.pipeline.sources.selection import counted

    totals = open_finished_run(ledger.storage).totals()
    out = ledger.storage.uri
    ok = totals.images - totals.failed
    typer.echo(f"images    {totals.images} ({ok} ok, {totals.failed} failed)")
    if totals.left_out:
        typer.echo(f"left out  {counted(totals.left_out, 'images in tars')}")
    typer.echo(f"masks     {totals.masks}, {totals.masks / max(1, ok):.1f} per image")
    if ended:
        typer.echo(f"speed     {ended / seconds:.2f} images/s ({ended} images in {seconds:.0f} s, start included)")
    typer.echo(f"output    {out}")
    masks, images = _tables(out)
    typer.echo(f"query     SELECT image_id, count(*), avg(predicted_iou) FROM {masks} GROUP BY image_id")
    if totals.failed:
        typer.echo(f"failures  SELECT image_id, error_step, error FROM {images} WHERE status <> 'ok'")
        typer.echo(f"retry     maskmill retry {shlex.quote(out)}")
    if out.startswith("s3://"):
        typer.echo(
            "note      to read s3://, DuckDB needs the extension httpfs and a secret: CREATE SECRET (TYPE s3, ...)"
        )
    elif "\\" in out:
        typer.echo(
            "note      run queries in the output folder, because DuckDB reads the backslash in its path as a slash"
        )


def _print_audit(summary: Summary | None, precision: Precision) -> None:
    """Prints the agreement of the run with exact precision. Warns if a fast run has less than documented."""
    from maskmill.pipeline.audit import MATCH_IOU, MIN_MATCHED, MIN_SAME_COUNT

    if summary is None or summary.audit is None:
        typer.echo("audit     no image of this command was audited")
        return
    audit = summary.audit
    matched = audit.shares["matched"]
    matched = 1.0 if matched is None else matched  # no masks in either
    same_count = audit.same_count / audit.images
    typer.echo(
        f"audit     {audit.images} images again in exact precision: {100 * matched:.2f} % of the masks matched at IoU "
        f"{MATCH_IOU:g}, {100 * same_count:.2f} % of the images with the same count"
    )
    if precision == "fast" and (matched < MIN_MATCHED or same_count < MIN_SAME_COUNT):
        log.write(
            "warning",
            f"the audit found less agreement than fast precision should have ({100 * MIN_MATCHED:g} % of the masks, "
            f"{100 * MIN_SAME_COUNT:g} % of the images): use --precision exact on these machines",
        )


def _tables(out: str) -> tuple[str, str]:
    """Both tables as quoted file patterns for DuckDB."""
    root = "" if "\\" in out else re.sub(r"[\[*?]", r"[\g<0>]", out.replace("'", "''")) + "/"
    return f"'{root}masks/*.parquet'", f"'{root}images/*.parquet'"
