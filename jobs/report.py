"""`maskmill report`: writes one HTML page about a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from maskmill.jobs.output_file import beside
from maskmill.jobs.run import MovedTo, RunOutput

T = TypeVar("T")


def report(
    out: RunOutput,
    to: Annotated[
        Path | None,
        typer.Option(
            help="Output file. Default: report.html next to OUT, or in the working directory if OUT is on S3.",
            show_default=False,
        ),
    ] = None,
    moved_to: MovedTo = None,
) -> None:
    """Write one HTML file about a run: masks, scores, filters, failures, throughput and sample pictures.

    The file needs no network and no other file. It reads all tables, but not the images, except for the samples.

    Examples:

      maskmill report out/

      maskmill report s3://bucket/out --to report.html
    """
    # Imported here because pyarrow and OpenCV take long to import and `--help` does not need them.
    from maskmill.jobs.console import plain_console
    from maskmill.jobs.progress import ProgressBar
    from maskmill.pipeline.errors import StorageError
    from maskmill.pipeline.finished import open_finished_run
    from maskmill.pipeline.storage import open_storage
    from maskmill.tables.report import write_report

    def track(what: str, unit: str, total: int, items: Iterator[T]) -> Iterator[T]:
        with ProgressBar(what, unit, total) as bar:
            yield from bar.track(items)

    path = to or beside(out, "report.html")
    text = write_report(open_finished_run(open_storage(out), moved_to), track)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror or error}") from error
    plain_console().print(f"report    {path}")
