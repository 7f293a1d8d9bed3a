"""Errors of runs that have a cause outside the program.

MaskmillError (model/errors.py)
├── ConfigError         (model/errors.py)
├── StorageError        a store that cannot be reached, read or written
│   └── ObjectError     one object that is missing or may not be read, in a store that works
├── UnknownImageError   an image id that a run does not have; also a KeyError
├── SourceError         a source with nothing to read, or that is not what it says
├── ImageError          one image that cannot be decoded: becomes a failed row, never ends a run
├── RunMismatchError    an output that belongs to another configuration, other weights or another schema
├── RunFailedError      a run that cannot go on
└── RunStoppedError     a run that a signal stopped
"""

import re

from maskmill.model.errors import ConfigError as ConfigError
from maskmill.model.errors import MaskmillError
from maskmill.model.errors import one_line_cause as one_line_cause

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_MAX_CHARACTERS = 500


class StorageError(MaskmillError):
    """A store that cannot be reached, read or written."""


class ObjectError(StorageError):
    """One object that is missing or may not be read, in a store that works: trying again does not help."""


class UnknownImageError(MaskmillError, KeyError):
    """An image id that a run does not have."""

    __str__ = Exception.__str__  # a KeyError prints its message in quotes


class SourceError(MaskmillError):
    """A source with nothing to read, or that is not what it says."""


class ImageError(MaskmillError):
    """One image that cannot be decoded."""


class RunMismatchError(MaskmillError):
    """An output that belongs to another run."""


class RunFailedError(MaskmillError):
    """A run that cannot go on."""


class RunStoppedError(MaskmillError):
    """A run that a signal stopped."""

    def __init__(self, signal_number: int) -> None:
        super().__init__("stopped; finished work is kept: run the same command again to resume")
        self.signal_number = signal_number


def exception_line(text: str) -> str:
    """The exception at the end of a traceback, such as Ray sends of a worker, in one line; other text in one line."""
    lines = _COLOUR.sub("", text).splitlines()
    frames = [number for number, line in enumerate(lines) if line.startswith("  File ")]
    if frames:
        after = lines[frames[-1] + 1 :]
        lines = after[next((number for number, line in enumerate(after) if not line.startswith(" ")), 0) :]
    return " ".join(" ".join(lines).split())[:_MAX_CHARACTERS]


def failure_reason(error: Exception) -> str:
    """The error of a failed image in one line, without memory addresses, so that equal failures have equal texts."""
    text = re.sub(r"0x[0-9a-fA-F]+", "0x...", one_line_cause(error, _MAX_CHARACTERS))
    return f"{type(error).__name__}: {text}"[:_MAX_CHARACTERS]
