"""Where objects are kept. docs/0003 has what is promised of a store."""

from maskmill.pipeline.storage.interface import PROBE_PREFIX, Skip, Storage, StoredObject
from maskmill.pipeline.storage.keys import file_name, is_key, one_line, utf8_text
from maskmill.pipeline.storage.local import LocalStorage
from maskmill.pipeline.storage.opening import open_storage, prove_create_if_absent

__all__ = [
    "PROBE_PREFIX",
    "LocalStorage",
    "Skip",
    "Storage",
    "StoredObject",
    "file_name",
    "is_key",
    "one_line",
    "open_storage",
    "prove_create_if_absent",
    "utf8_text",
]
