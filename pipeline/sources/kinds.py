"""The table of kinds of sources: how each kind is recognised and opened."""

# pyarrow has no type stubs; strict checking would report each use of it.
# pyright: standard
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa

from maskmill.pipeline.sources.folder import ImageFolder
from maskmill.pipeline.sources.manifest import Manifest
from maskmill.pipeline.sources.manifest_rows import is_manifest
from maskmill.pipeline.sources.names import is_image, is_list, is_parquet, is_tar
from maskmill.pipeline.sources.parquet import ParquetImages, image_columns
from maskmill.pipeline.sources.selection import NameFilter
from maskmill.pipeline.sources.source import Source
from maskmill.pipeline.sources.tars import WebDatasetTars
from maskmill.pipeline.storage import ReadableStorage

# (store, SOURCE, keys of its files or None for all listed files, filter of image names) -> source
Open = Callable[[ReadableStorage, str, tuple[str, ...] | None, NameFilter], Source]


@dataclass(frozen=True)
class Kind:
    """One kind of source."""

    open: Open
    fits_name: Callable[[str], bool]  # whether a file with this name can be of this kind
    fits_schema: Callable[[pa.Schema], bool] | None = None  # for Parquet files: whether the columns fit too
    in_folders: bool = True  # whether a folder of such files is a source
    in_patterns: bool = False  # whether a pattern of such files is a source


# Keys are the names that plans record. A file has the first kind that fits.
KINDS = {
    "folder": Kind(ImageFolder, is_image),
    "tars": Kind(WebDatasetTars, is_tar, in_patterns=True),
    "parquet": Kind(ParquetImages, is_parquet, lambda schema: image_columns(schema) is not None, in_patterns=True),
    "manifest": Kind(
        lambda storage, uri, _, names: Manifest(storage, uri, names),
        lambda name: is_list(name) or is_parquet(name),
        is_manifest,
        in_folders=False,
    ),
}
