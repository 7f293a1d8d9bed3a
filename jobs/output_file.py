"""Where output files go by default, and an output file that gets its name when it is complete."""

from __future__ import annotations

import os
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from maskmill.pipeline.errors import StorageError


def beside(out: str, name: str) -> Path:
    """The file `name` next to OUT, or in the working directory if OUT is on S3."""
    return (Path.cwd() if "://" in out else Path(out).absolute().parent) / name


@contextmanager
def replaced_file(path: Path) -> Generator[BinaryIO]:
    """A file to write. It replaces the file at `path` at the end of the block, unless the block raises.

    Raises StorageError if the file cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with unfinished.open("wb") as stream:
            yield stream
        os.replace(unfinished, path)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        unfinished.unlink(missing_ok=True)
