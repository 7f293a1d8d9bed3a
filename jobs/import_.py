"""`maskmill import`: makes a run of annotations in another format."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from maskmill.pipeline.records import ImageResult

FAILURES_SHOWN = 20


def import_(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="COCO or LVIS instances (.json), a folder of SA-1B, CVAT for images (.xml), or a folder with one of "
            "these files.",
            show_default=False,
        ),
    ],
    out: Annotated[
        str, typer.Argument(metavar="OUT", help="An empty folder, or s3://bucket/prefix.", show_default=False)
    ],
    images: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the image files, if they are not near the annotations. They are not read, and may be "
            "missing.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Make a run of annotations, which verify, compare, preview, export and all other commands on runs accept.

    The id of an image is the path of its file, as in a run of `maskmill generate` over the same folder.

    An image with damaged annotations becomes a failed row. A killed import is resumed by the same command.

    Examples:

      maskmill import annotations/instances_val2017.json out/ --images val2017/

      maskmill import sa1b/ s3://bucket/out
    """
    # Imported here because pyarrow takes long to import and `--help` does not need it.
    from maskmill.annotations.importing import open_import, write_import
    from maskmill.jobs.progress import ProgressBar
    from maskmill.pipeline.finished import open_finished_run
    from maskmill.pipeline.records import Failure
    from maskmill.pipeline.storage import open_storage

    opened = open_import(source, images)
    storage = open_storage(out, make=True)
    failed = 0
    with ProgressBar("importing", "images", len(opened)) as bar:

        def on_image(result: ImageResult) -> None:
            nonlocal failed
            bar.update(advance=1)
            if isinstance(result.outcome, Failure):
                failed += 1
                if failed <= FAILURES_SHOWN:
                    bar.print(f"maskmill: warning: {result.outcome.reason}")

        write_import(opened, storage, on_image)
    if failed > FAILURES_SHOWN:
        sys.stderr.write(f"maskmill: warning: ... and {failed - FAILURES_SHOWN} more images with damaged annotations\n")
    totals = open_finished_run(storage).totals()
    typer.echo(f"images  {totals.images} ({totals.images - totals.failed} ok, {totals.failed} failed)")
    typer.echo(f"masks   {totals.masks}")
    typer.echo(f"output  {storage.uri}")
