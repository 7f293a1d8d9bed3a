"""Selects the files of a source: patterns of the user, exclusion of system files, counts of what is left out."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from maskmill.pipeline.errors import ConfigError
from maskmill.pipeline.sources.names import is_parquet, is_tar

logger = logging.getLogger(__name__)

# Folders that systems create: Synology, QNAP, macOS zips, Windows, ext4. They hold thumbnails or deleted files.
RUBBISH_FOLDERS = frozenset(
    ("@eaDir", "#recycle", "@Recycle", "__MACOSX", "$RECYCLE.BIN", "System Volume Information", "lost+found")
)
LABEL_MAP = ".seg.png"  # extension of WebDataset for the segmentation of a photograph
# Files of a run's output: ledger.RUN_KEY and plan.PLAN_KEY, not imported because those modules import this package.
OUTPUT_MARKS = ("_plan.parquet", "_run.json")
MAX_REASONS = 8  # reasons listed in one line


@dataclass(frozen=True)
class NameFilter:
    """Patterns that select images by path relative to SOURCE (in a tar: path of the tar / name of the member).

    A pattern matches files or folders, as in .gitignore: `thumbs` matches everything in folders of this name,
    `val-*.tar` all images in these tars. `*`, `?` and `[...]` match within one name, `**` matches any number of
    folders; case matters. A pattern with a leading slash is relative to SOURCE, others match in any folder. Raises
    ConfigError if a pattern is empty.
    """

    include: tuple[str, ...] = ()  # if not empty, an image must match one of these
    exclude: tuple[str, ...] = ()  # an image must match none of these

    def __post_init__(self) -> None:
        if not all(pattern.strip("/") for pattern in (*self.include, *self.exclude)):
            raise ConfigError("--include and --exclude need a pattern, such as '*.jpg' or 'thumbs'; one is empty")

    @staticmethod
    def from_json(fields: Mapping[str, list[str]]) -> NameFilter:
        """The inverse of `dataclasses.asdict` after a round trip through JSON."""
        return NameFilter(**{name: tuple(patterns) for name, patterns in fields.items()})

    def excludes(self, path: str) -> bool:
        """Whether a path, or a folder above it, matches a pattern in `exclude`."""
        return any(_matches(path, pattern) for pattern in self.exclude)

    def keeps(self, path: str) -> bool:
        """Whether the image at a path is selected."""
        included = not self.include or any(_matches(path, pattern) for pattern in self.include)
        return included and not self.excludes(path)

    @property
    def applied(self) -> str:
        """The patterns for the end of an error message: empty, or " with --include '*.jpg'"."""
        named = (("include", self.include), ("exclude", self.exclude))
        options = [f"--{option} '{pattern}'" for option, patterns in named for pattern in patterns]
        return f" with {' '.join(options)}" if options else ""


ALL_NAMES = NameFilter()


def _matches(path: str, pattern: str) -> bool:
    anywhere = [] if pattern.startswith("/") else ["**"]
    return _begins_with(path.split("/"), [*anywhere, *pattern.strip("/").split("/")])


def _begins_with(parts: list[str], patterns: list[str]) -> bool:
    """Whether the leading parts of a path match the patterns one by one; `**` matches any number of parts."""
    if not patterns:
        return True
    first, *others = patterns
    if first == "**":
        return any(_begins_with(parts[start:], others) for start in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], first) and _begins_with(parts[1:], others)


def reason_to_skip(path: str, names: NameFilter) -> str | None:
    """The reason to leave out the image at `path`, as a short label for counts; None if it is selected."""
    if reason := _rubbish(path):
        return reason
    if names.excludes(path):
        return "matched by --exclude"
    return None if names.keeps(path) else "not matched by --include"


def _rubbish(path: str) -> str | None:
    for part in path.split("/"):
        if part.startswith("."):
            return "hidden"
        if part in RUBBISH_FOLDERS:
            return part
    return f"*{LABEL_MAP}" if path.lower().endswith(LABEL_MAP) else None


@dataclass
class LeftOut:
    """Decides which names one listing skips, and counts them by reason. A folder counts as one."""

    names: NameFilter
    counts: Counter[str] = field(default_factory=Counter[str])
    _output: str = "/"  # the last folder found to be the output of a run, with a trailing slash

    def skips(self, key: str) -> bool:
        """Whether to skip a file or a whole folder (its key ends with a slash). Call it in the order of keys."""
        folder, _, name = key.rpartition("/")
        if folder and name in OUTPUT_MARKS:
            self._output = f"{folder}/"
        if key.startswith(self._output):
            reason = "outputs of maskmill"
        elif key.endswith("/") or is_tar(key) or is_parquet(key):  # its images are matched one by one
            reason = reason_to_skip(key.rstrip("/"), replace(self.names, include=()))
        else:
            reason = reason_to_skip(key, self.names)
        if reason:
            self.counts[reason] += 1
        return reason is not None

    def skips_image(self, path: str) -> bool:
        """Whether to skip an image inside a tar or Parquet file."""
        if reason := reason_to_skip(path, self.names):
            self.counts[reason] += 1
        return reason is not None

    @property
    def summary(self) -> str:
        """What was left out and why, for a message; empty if nothing was."""
        return f"left out {counted(self.counts, 'files or folders')}" if self.counts else ""

    def warn(self, uri: str) -> None:
        """Logs one warning about the source at `uri` if anything was left out."""
        if self.counts:
            logger.warning("%s: %s", uri, self.summary)


def counted(counts: Mapping[str, int], unit: str) -> str:
    """Counts by reason for a message, the largest first."""
    ordered = Counter(counts).most_common()
    rest = sum(count for _, count in ordered[MAX_REASONS:])
    shown = [f"{reason}: {count}" for reason, count in ordered[:MAX_REASONS]] + [f"others: {rest}"] * bool(rest)
    return f"{sum(counts.values())} {unit} ({', '.join(shown)})"
