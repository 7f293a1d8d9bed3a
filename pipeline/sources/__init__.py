"""Sources: where images are read from. docs/0004 describes each kind."""

from maskmill.pipeline.sources.folder import ImageFolder
from maskmill.pipeline.sources.kinds import KINDS
from maskmill.pipeline.sources.manifest import Manifest
from maskmill.pipeline.sources.names import MAX_ENCODED_BYTES, is_image
from maskmill.pipeline.sources.opening import moved, open_planned, open_source, source_uri
from maskmill.pipeline.sources.parquet import ParquetImages
from maskmill.pipeline.sources.selection import ALL_NAMES, NameFilter
from maskmill.pipeline.sources.source import PlannedSource, Source
from maskmill.pipeline.sources.tars import WebDatasetTars

__all__ = [
    "ALL_NAMES",
    "KINDS",
    "MAX_ENCODED_BYTES",
    "ImageFolder",
    "Manifest",
    "NameFilter",
    "ParquetImages",
    "PlannedSource",
    "Source",
    "WebDatasetTars",
    "is_image",
    "moved",
    "open_planned",
    "open_source",
    "source_uri",
]
