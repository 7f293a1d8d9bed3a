"""What images are read from. docs/0004 has what each kind of source gives."""

from pipeline.sources.folder import ImageFolder
from pipeline.sources.manifest import Manifest
from pipeline.sources.names import MAX_ENCODED_BYTES, is_image
from pipeline.sources.opening import open_source
from pipeline.sources.parquet import ParquetImages
from pipeline.sources.source import Source
from pipeline.sources.tars import WebDatasetTars

__all__ = [
    "MAX_ENCODED_BYTES",
    "ImageFolder",
    "Manifest",
    "ParquetImages",
    "Source",
    "WebDatasetTars",
    "is_image",
    "open_source",
]
