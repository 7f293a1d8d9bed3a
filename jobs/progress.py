"""How far a command is: a bar on stderr; where that is no terminal, as in a job's log, a line every minute."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from types import TracebackType
from typing import Any, TypeVar

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from maskmill.jobs.console import plain_console

T = TypeVar("T")

LINE_SECONDS = 60.0
# Estimates look back ten minutes: on a CPU an image takes a while.
ESTIMATE_SECONDS = 600.0


class ProgressBar:
    """Of one task, which is `what` is done with `total` of a `unit`, such as "images". To be entered."""

    def __init__(self, what: str, unit: str, total: int | None = None, line_seconds: float = LINE_SECONDS) -> None:
        self._unit, self._line_seconds = unit, line_seconds
        self._person = plain_console(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
            TextColumn("left:"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
        )
        self._bar = Progress(
            *columns,
            console=self._person,
            speed_estimate_period=ESTIMATE_SECONDS,
            disable=not self._person.is_terminal,
        )
        self._task = self._bar.add_task(what, total=total, figures="")
        self._told = time.monotonic()

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._bar.disable:  # rich before 14.1 ends with an empty line even then
            self._bar.stop()

    def update(self, **changes: Any) -> None:
        """`advance`, `completed`, `total` or `description`, as rich's; `figures` are a text beside the bar."""
        self._bar.update(self._task, **changes)
        now = time.monotonic()
        if self._bar.disable and now - self._told >= self._line_seconds:
            self._told = now
            self._person.print(f"maskmill: {self._line()}")

    def restart(self, completed: int) -> None:
        """From where the task goes on: what was done before is not how fast it is."""
        self._bar.reset(self._task, completed=completed)

    def track(self, items: Iterable[T]) -> Iterator[T]:
        """The items; each counts as done when the next one is asked for."""
        for item in items:
            yield item
            self.update(advance=1)

    def tell(self, text: str) -> None:
        """A line above the bar."""
        self._person.print(text)

    def _line(self) -> str:
        task = self._bar.tasks[0]
        of = "" if task.total is None else f" of {task.total:.0f}"
        left = "" if task.time_remaining is None else f", {_clock(task.time_remaining)} left"
        figures = f"  {task.fields['figures']}" if task.fields["figures"] else ""
        return f"{task.description} {task.completed:.0f}{of} {self._unit}, {_clock(task.elapsed or 0)}{left}{figures}"


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
