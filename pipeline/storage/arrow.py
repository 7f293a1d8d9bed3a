"""A store as a read-only pyarrow file system, for data sets of Parquet files."""

# pyarrow has no type stubs; strict checking would report each use of it.
# pyright: standard
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.fs as arrow

from maskmill.pipeline.storage.interface import ReadableStorage
from maskmill.pipeline.storage.local import LocalStorage


def arrow_file_system(storage: ReadableStorage) -> arrow.FileSystem:
    """A picklable file system with the keys of `storage` as paths. For a local folder it is pyarrow's own."""
    if isinstance(storage, LocalStorage):
        return arrow.SubTreeFileSystem(str(storage.root), arrow.LocalFileSystem())
    return arrow.PyFileSystem(_Objects(storage))


@dataclass(frozen=True)
class _Objects(arrow.FileSystemHandler):
    storage: ReadableStorage

    def get_type_name(self) -> str:
        return "maskmill"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: Sequence[str]) -> list[arrow.FileInfo]:
        kinds = (arrow.FileType.File if self.storage.exists(path) else arrow.FileType.NotFound for path in paths)
        return [arrow.FileInfo(path, kind) for path, kind in zip(paths, kinds, strict=True)]

    def open_input_file(self, path: str) -> pa.NativeFile:
        return pa.PythonFile(self.storage.open(path), mode="r")

    open_input_stream = open_input_file

    def _refuse(self, *_: Any) -> NoReturn:
        raise OSError(f"{self.storage.uri}: this file system only opens files by path")

    get_file_info_selector = create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = _refuse
    delete_file = move = copy_file = open_output_stream = open_append_stream = _refuse
