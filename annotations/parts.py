"""The parts of a run, read by those who look at its output from outside: damage is an AnnotationError that names it."""

# pyarrow ships no types: strict checking would find every line that touches it unknown.
# pyright: standard
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from maskmill.annotations.records import AnnotationError
from maskmill.pipeline.errors import one_line_cause
from maskmill.pipeline.ledger import masks_key
from maskmill.pipeline.storage import Storage
from maskmill.pipeline.table import read_images, read_parquet


def read_footer(storage: Storage, part: str) -> pa.Table:
    """The images of a part, as IMAGES has them. Raises AnnotationError or StorageError."""
    with _damage_named(storage, part), storage.open(masks_key(part)) as stream:
        return read_images(stream)


def read_counts(storage: Storage, part: str) -> pa.Table:
    """The masks of a part: `image_id` and `rle_counts`. Raises AnnotationError or StorageError."""
    data = storage.read(masks_key(part))
    with _damage_named(storage, part):
        return read_parquet(data, ["image_id", "rle_counts"])


@contextmanager
def _damage_named(storage: Storage, part: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise AnnotationError(f"{storage.uri}/{masks_key(part)}: damaged: {one_line_cause(error)}") from error
