"""The summary of a driver: what it did, at what cost. Stored in the output as `_summary-<n>.json` when the driver ends.

A run has one summary per driver: a command that resumes the run adds another. A driver that was killed leaves none.
"""

from __future__ import annotations

import itertools
import json
import logging
import platform
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

from maskmill.filters.agreement import Agreement
from maskmill.pipeline.errors import MaskmillError, StorageError
from maskmill.pipeline.progress import Progress
from maskmill.pipeline.records import process_name
from maskmill.pipeline.storage import Storage

_KEY = re.compile(r"_summary-(\d+)\.json")
PACKAGES = ("maskmill", "ray", "torch", "numpy", "pyarrow")

logger = logging.getLogger(__name__)


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


@dataclass
class Summary:
    """Counted while a driver runs. Times are seconds since 1970, durations are seconds."""

    identity: str  # sha256 of the run's identity
    driver: str = field(default_factory=process_name)  # host:process id
    began: float = field(default_factory=time.time)
    ended: float = 0.0
    outcome: str = "finished"  # or the error that ended the driver
    images: dict[str, int] = field(default_factory=lambda: {"ok": 0, "failed": 0, "quarantined": 0})
    masks: int = 0
    image_seconds: float = 0.0  # the sum over all images of the time spent in all steps
    worker_seconds: float = 0.0  # the sum over all workers of the time from their start to their end
    gpu_seconds: float = 0.0  # the same, for GPUs that workers held; idle GPUs count
    retries: int = 0  # attempts at a shard that failed; the shard was tried again unless it failed too often
    preemptions: int = 0  # workers lost with their machine, or ended because it was draining
    audit: Agreement | None = None  # of audited images with exact precision: A is the run, B is exact
    audits_failed: int = 0
    versions: dict[str, str] = field(default_factory=_versions)

    def add_image(self, progress: Progress) -> None:
        """Counts a finished image."""
        assert progress.status is not None
        self.images[progress.status] += 1
        self.masks += progress.n_masks
        self.image_seconds += progress.milliseconds / 1000
        if isinstance(progress.audit, Agreement):
            self.audit = (self.audit or Agreement()) + progress.audit
        elif progress.audit:
            self.audits_failed += 1
            extra = {"image_id": progress.image_id}
            logger.warning("%s: the audit failed: %s", progress.image_id, progress.audit.reason, extra=extra)

    def add_worker(self, seconds: float, gpus: float) -> None:
        """Counts a worker that has ended."""
        self.worker_seconds += seconds
        self.gpu_seconds += seconds * gpus


@contextmanager
def summarised(storage: Storage, identity: str) -> Iterator[Summary]:
    """A summary that is written to `storage` when the block ends, also by an exception.

    If it cannot be written, a warning says so: the run itself is complete without it.
    """
    summary = Summary(identity)
    try:
        yield summary
    except BaseException as error:
        summary.outcome = str(error) if isinstance(error, MaskmillError) else f"{type(error).__name__}: {error}"
        raise
    finally:
        summary.ended = time.time()
        try:
            _write(storage, summary)
        except StorageError as error:
            logger.warning("the summary of this driver was not written: %s", error)


def _write(storage: Storage, summary: Summary) -> None:
    audit = summary.audit and asdict(summary.audit) | {"shares": summary.audit.shares}
    text = json.dumps(asdict(summary) | {"audit": audit}, indent=2) + "\n"
    first = max(map(_number, _keys(storage)), default=-1) + 1
    for number in itertools.count(first):  # another driver may write its summary at the same time
        if storage.create(f"_summary-{number}.json", text.encode()):
            return


def read_summaries(storage: Storage) -> list[dict[str, Any]]:
    """The summaries in an output, in the order in which the drivers ended. Raises StorageError if one is damaged."""
    summaries: list[dict[str, Any]] = []
    for key in sorted(_keys(storage), key=_number):
        try:
            summaries.append(json.loads(storage.read(key)))
        except ValueError as error:
            raise StorageError(f"{storage.uri}/{key}: damaged ({error}): delete it") from error
    return summaries


def is_summary(key: str) -> bool:
    """Whether this is the key of a summary."""
    return _KEY.fullmatch(key) is not None


def _keys(storage: Storage) -> list[str]:
    return [item.key for item in storage.list("_summary-") if is_summary(item.key)]


def _number(key: str) -> int:
    match = _KEY.fullmatch(key)
    assert match
    return int(match[1])
