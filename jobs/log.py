"""The log of a command on stderr: warnings, errors and progress, as text or as one JSON object per line."""

from __future__ import annotations

import json
import logging
import sys
import time
from enum import StrEnum
from typing import Annotated, Any

import typer

# Attributes of log records (`extra`) that become fields of a JSON line.
FIELDS = ("shard", "attempt", "worker", "image_id")


class LogFormat(StrEnum):
    text = "text"
    json = "json"


LogFormatOption = Annotated[
    LogFormat,
    typer.Option(
        "--log-format", help="Warnings, errors and progress on stderr as text or as one JSON object per line."
    ),
]


class Log:
    """Writes to the current sys.stderr, which a progress bar replaces."""

    def __init__(self) -> None:
        self._common: dict[str, Any] | None = None  # fields of every JSON line; None: the format is text

    @property
    def is_json(self) -> bool:
        return self._common is not None

    def use(self, log_format: LogFormat, **common: Any) -> None:
        """Sets the format. `common` are fields of each JSON line, such as the run."""
        self._common = common if log_format is LogFormat.json else None

    def write(self, level: str, message: str, **fields: Any) -> None:
        """Writes one line."""
        if self._common is None:
            prefix = "" if level == "info" else f"{level}: "
            sys.stderr.write(f"maskmill: {prefix}{message}\n")
        else:
            line = {"time": time.time(), "level": level, "message": message, **self._common, **fields}
            sys.stderr.write(json.dumps(line) + "\n")


log = Log()


class LogHandler(logging.Handler):
    """Passes log records to `log`. As text, equal messages are written once."""

    def __init__(self) -> None:
        super().__init__()
        self._written: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        message = " ".join(record.getMessage().split())
        if log.is_json or message not in self._written:
            self._written.add(message)
            fields = {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
            log.write(record.levelname.lower(), message, **fields)
