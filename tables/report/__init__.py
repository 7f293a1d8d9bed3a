"""A run as one HTML file. `figures` reads the tables, `samples` and `svg` draw, `page` writes."""

from __future__ import annotations

from maskmill.pipeline.errors import SourceError
from maskmill.pipeline.finished import Run
from maskmill.tables.report.figures import Track, collect
from maskmill.tables.report.page import render
from maskmill.tables.report.samples import Picture, draw

PICTURES = 12


def write_report(run: Run, track: Track) -> str:
    """The report of a run as HTML: at most a few megabytes, whatever the size of the run.

    `track(what, unit, total, items)` yields the items and may show progress. Raises ObjectError if a part is damaged
    and StorageError if the store cannot be reached. If the images are gone, the report says so.
    """
    figures = collect(run, track)
    pictures: list[Picture] = []
    problem = ""
    sample = figures.sample[:PICTURES]
    try:
        pictures.extend(track("drawing", "images", len(sample), draw(run, sample)))
    except SourceError as error:
        problem = str(error)
    return render(run.storage.uri, run.settings, figures, pictures, problem)
