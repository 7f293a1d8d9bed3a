"""Stores of objects: local disk and S3. docs/0003 says what a store guarantees."""

from maskmill.pipeline.storage.interface import PROBE_PREFIX, ReadableStorage, Skip, Storage, StoredObject
from maskmill.pipeline.storage.keys import file_name, is_key, one_line, utf8_text
from maskmill.pipeline.storage.local import LocalStorage
from maskmill.pipeline.storage.opening import open_readable, open_storage, prove_create_if_absent

__all__ = [
    "PROBE_PREFIX",
    "LocalStorage",
    "ReadableStorage",
    "Skip",
    "Storage",
    "StoredObject",
    "file_name",
    "is_key",
    "one_line",
    "open_readable",
    "open_storage",
    "prove_create_if_absent",
    "utf8_text",
]
