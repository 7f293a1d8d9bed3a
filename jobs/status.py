"""`maskmill status`: shows how far a run is, from its output alone."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import timedelta
from itertools import zip_longest
from typing import TYPE_CHECKING, Annotated

import typer

from maskmill.jobs.run import RunOutput

if TYPE_CHECKING:
    from maskmill.pipeline.status import Comparison, Status

WATCH_SECONDS = 5.0
MAX_ROWS = 20  # of each table of text; JSON has all


def status(
    out: RunOutput,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again every 5 seconds until the run ends.")] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print JSON, with all parts and workers; with --watch one line of JSON each time."),
    ] = False,
) -> None:
    """Show how far a run is: shards and images done and left, failures, speed and time left, by worker and shard.

    Reads only OUT, so it works while the run goes on elsewhere and after the cluster is gone. The speed is measured
    over the last ten minutes.

    Shards in progress are not part of the output and not shown.

    Examples:

      maskmill status out/

      maskmill status s3://bucket/out --watch
    """
    # Imported here because pyarrow takes long to import and `--help` does not need it.
    from rich.live import Live

    from maskmill.jobs.console import plain_console
    from maskmill.pipeline.finished import open_finished_run
    from maskmill.pipeline.status import StatusReader
    from maskmill.pipeline.storage import open_storage

    run = open_finished_run(open_storage(out))
    reader = StatusReader(run)
    console = plain_console()
    states = reader.watch(WATCH_SECONDS) if watch else iter([reader.read()])
    if as_json:
        for state in states:
            typer.echo(json.dumps({"out": run.storage.uri, **asdict(state)}, indent=None if watch else 2))
    elif watch and console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            for state in states:
                live.update("\n".join(_lines(run.storage.uri, state)), refresh=True)
    else:
        for state in states:
            typer.echo("\n".join(_lines(run.storage.uri, state)))


def _lines(out: str, state: Status) -> Iterator[str]:
    """The status as lines of text."""
    from maskmill.pipeline.status import last_parts

    left = "" if state.images is None else f", {state.images - state.images_done} left"
    failed = state.failed + state.quarantined
    yield f"shards    {state.shards_done} done, {state.shards - state.shards_done} left"
    yield f"images    {state.images_done} done ({state.ok} ok, {failed} failed){left}"
    if failed:
        steps = ", ".join(f"{step}: {count}" for step, count in state.failures.items())
        yield f"failures  {steps}; {state.quarantined} of them quarantined; see maskmill retry {shlex.quote(out)}"
    yield f"masks     {state.masks}, {state.masks / max(1, state.ok):.1f} per image"
    if state.images_per_second is None:
        yield "speed     unknown: no part of this run says when it was made"
    else:
        last = "of the run" if state.finished else "until now"
        workers = f"{state.active_workers} worker{'' if state.active_workers == 1 else 's'}"
        yield f"speed     {state.images_per_second:.2f} images/s in the last ten minutes {last}, {workers}"
    if state.finished:
        yield "left      nothing: the run is finished"
    else:
        yield f"left      {'unknown' if state.seconds_left is None else timedelta(seconds=round(state.seconds_left))}"
    if state.comparison:
        yield from _comparison(state.comparison)
    if state.drivers:
        hours = sum(driver["gpu_seconds"] for driver in state.drivers) / 3600
        counts = (f"{sum(driver[name] for driver in state.drivers)} {name}" for name in ("preemptions", "retries"))
        yield f"drivers   {len(state.drivers)} ended: {hours:.2f} GPU hours, {', '.join(counts)}"
    if state.workers:
        yield ""
        recent = sorted(state.workers, key=lambda worker: -worker.last_commit)
        rows = [
            (
                *(worker.worker, str(worker.parts), str(worker.images)),
                "-" if worker.images_per_second is None else f"{worker.images_per_second:.2f}",
                _local_time(worker.last_commit),
            )
            for worker in recent
        ]
        yield from _table(("worker", "shards", "images", "images/s", "last commit"), rows)
    if troubled := [part for part in last_parts(state.parts) if part.images > part.ok or part.attempts > 1]:
        yield ""
        rows = [
            (
                *(part.part, str(part.images), str(part.images - part.ok), str(part.attempts)),
                *((part.work.worker, _local_time(part.work.ended)) if part.work else ("-", "-")),
            )
            for part in troubled
        ]
        yield from _table(("shard", "images", "failed", "attempts", "worker", "committed"), rows)


def _comparison(comparison: Comparison) -> Iterator[str]:
    estimate = comparison.estimate
    planned, taken = estimate.seconds_per_image.mean, comparison.seconds_per_image
    error = _percent(comparison.image_error)
    yield f"plan      {planned:.3g} s per image on one worker; it takes {taken:.3g} s: {error}"
    if comparison.seconds is not None and comparison.error is not None:
        planned, taken = (timedelta(seconds=round(s)) for s in (estimate.seconds.mean, comparison.seconds))
        workers = f"{estimate.workers} worker{'' if estimate.workers == 1 else 's'}"
        yield f"          {planned} with {workers}; it took {taken}: {_percent(comparison.error)}"


def _percent(error: float) -> str:
    return f"{abs(error):.0%} {'more' if error > 0 else 'less'}".replace("%", " %")


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    shown = [head, *rows[:MAX_ROWS]]
    widths = [max(map(len, column)) for column in zip_longest(*shown, fillvalue="")]
    for row in shown:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    if len(rows) > MAX_ROWS:
        yield f"... and {len(rows) - MAX_ROWS} more: see --json"


def _local_time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
