"""Shows progress on stderr: a bar on a terminal, otherwise (as in the log of a job) a line every minute."""

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
from maskmill.jobs.log import log

T = TypeVar("T")

LINE_SECONDS = 60.0
# Speed is estimated over ten minutes, because an image takes long on a CPU.
ESTIMATE_SECONDS = 600.0


class ProgressBar:
    """The progress of one task, a context manager: `what` is done ("verifying") to `total` units ("images")."""

    def __init__(self, what: str, unit: str, total: int | None = None, line_seconds: float = LINE_SECONDS) -> None:
        self._unit, self._line_seconds = unit, line_seconds
        self._console = plain_console(stderr=True)
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
            console=self._console,
            speed_estimate_period=ESTIMATE_SECONDS,
            disable=log.is_json or not self._console.is_terminal,
        )
        self._task = self._bar.add_task(what, total=total, figures="")
        self._last_line = time.monotonic()

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._bar.disable:  # a disabled bar of rich before 14.1 would print an empty line
            self._bar.stop()

    def update(self, **changes: Any) -> None:
        """Takes `advance`, `completed`, `total` and `description` as in rich; `figures` is text beside the bar."""
        self._bar.update(self._task, **changes)
        now = time.monotonic()
        if self._bar.disable and now - self._last_line >= self._line_seconds:
            self._last_line = now
            task = self._bar.tasks[0]
            log.write("info", self._line(), done=task.completed, total=task.total, unit=self._unit)

    def restart(self, completed: int) -> None:
        """Restarts the speed estimate of a resumed task at `completed` units."""
        self._bar.reset(self._task, completed=completed)

    def track(self, items: Iterable[T]) -> Iterator[T]:
        """Yields the items; each counts as done when the caller requests the next one."""
        for item in items:
            yield item
            self.update(advance=1)

    def print(self, text: str) -> None:
        """Prints a line above the bar."""
        self._console.print(text)

    def _line(self) -> str:
        task = self._bar.tasks[0]
        of = "" if task.total is None else f" of {task.total:.0f}"
        left = "" if task.time_remaining is None else f", {_clock(task.time_remaining)} left"
        figures = f"  {task.fields['figures']}" if task.fields["figures"] else ""
        return f"{task.description} {task.completed:.0f}{of} {self._unit}, {_clock(task.elapsed or 0)}{left}{figures}"


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
