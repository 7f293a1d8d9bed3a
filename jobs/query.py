"""`maskmill query`: SQL over the tables of a run."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from maskmill.jobs.run import RunOutput


class Format(StrEnum):
    """The formats of tables.results."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    JSONL = "jsonl"
    PARQUET = "parquet"


def query(
    out: RunOutput,
    sql: Annotated[
        str, typer.Argument(metavar="SQL", help="A query over the views masks and images.", show_default=False)
    ],
    to: Annotated[Path | None, typer.Option(help="Output file. Default: stdout.", show_default=False)] = None,
    format: Annotated[
        Format | None,
        typer.Option(help="Default: by the extension of the output file, otherwise table.", show_default=False),
    ] = None,
) -> None:
    """Ask a question about a run in SQL (DuckDB), on disk or S3.

    The views masks and images are the tables of the run. Functions on masks work on rle_counts without decoding it:
    mask_area, mask_bbox, mask_iou, mask_contains, mask_intersection, mask_union, mask_difference, mask_at, mask_holes,
    mask_components and mask_polygons (GeoJSON). A table shows the first 100 rows; the other formats have all rows.

    Examples:

      maskmill query out/ "SELECT status, count(*) FROM images GROUP BY 1"

      maskmill query out/ "SELECT * FROM masks WHERE area > 5000" --to large.parquet

      maskmill query s3://bucket/out "SELECT mask_id, area FROM masks WHERE image_id = 'a.jpg'" --format jsonl
    """
    # Imported here because torch, pyarrow and DuckDB take seconds to import and `--help` does not need them.
    from maskmill.jobs.output_file import replaced_file
    from maskmill.jobs.progress import ProgressBar
    from maskmill.pipeline.finished import open_finished_run
    from maskmill.pipeline.storage import open_storage
    from maskmill.tables import query as queries
    from maskmill.tables import results

    chosen = format or _format_of(to)
    if chosen is Format.PARQUET and to is None and sys.stdout.isatty():
        raise typer.BadParameter("parquet is binary: give --to FILE, or pipe it")
    relation = queries.query(open_finished_run(open_storage(out)), sql)
    if to is None:
        results.write(relation, chosen, sys.stdout.buffer, lambda rows: None)
        return
    with ProgressBar("writing", "rows") as bar, replaced_file(to) as stream:
        results.write(relation, chosen, stream, lambda rows: bar.update(advance=rows))


def _format_of(path: Path | None) -> Format:
    if path is None:
        return Format.TABLE
    try:
        return Format(path.suffix[1:].lower())
    except ValueError:
        raise typer.BadParameter(
            f"{path}: give --format, or a name that ends in .csv, .json, .jsonl or .parquet"
        ) from None
