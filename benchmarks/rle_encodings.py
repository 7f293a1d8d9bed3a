"""Size and speed of ways to store compressed RLEs in a Parquet column, for benchmarks.access.

All hold the same strings, COCO's compressed RLE, so any reader of Parquet and COCO can use them.
"""

# pyarrow ships no types: strict checking would find every line that touches it unknown.
# pyright: standard
from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from maskmill.pipeline.table import PAGE_BYTES, RLE_ZSTD_LEVEL, ROWS_PER_GROUP
from testing.synthetic_runs import MaskPool

MASKS = 8192
REPEATS = 2
_CHOSEN = {"compression": "zstd", "compression_level": RLE_ZSTD_LEVEL}
SORTED = f"zstd {RLE_ZSTD_LEVEL}, masks of an image sorted by area"
# Name -> options of pyarrow.parquet.write_table.
ENCODINGS: dict[str, dict[str, Any]] = {
    **{f"zstd {level}": _CHOSEN | {"compression_level": level} for level in (1, 3, 6, 9, 12, 15, 17, 19)},
    "snappy": {"compression": "snappy"},
    "lz4": {"compression": "lz4"},
    "gzip": {"compression": "gzip"},
    "brotli 5": {"compression": "brotli", "compression_level": 5},
    "none": {"compression": "none"},
    f"zstd {RLE_ZSTD_LEVEL}, dictionary": _CHOSEN | {"use_dictionary": True},
    **{
        f"zstd {RLE_ZSTD_LEVEL}, {encoding}": _CHOSEN | {"column_encoding": {"rle_counts": encoding}}
        for encoding in ("DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY")
    },
    f"zstd {RLE_ZSTD_LEVEL}, pages of 1 MiB": _CHOSEN | {"data_page_size": 1 << 20},
    SORTED: _CHOSEN,
}


@dataclass(frozen=True)
class Encoded:
    """One way to store the RLEs. Speeds count bytes of RLE per CPU second."""

    share: float  # bytes of the file per byte of RLE
    written_mb: float  # per second
    read_mb: float


def measure_encodings(pool: MaskPool, masks_per_image: int) -> dict[str, Encoded]:
    """Writes and reads RLEs of the pool as a column of their own."""
    counts, area_K = pool.counts[:MASKS], pool.area_K[:MASKS]
    by_area = np.lexsort((area_K, np.arange(len(counts)) // masks_per_image))
    length = sum(map(len, counts))
    encoded: dict[str, Encoded] = {}
    for name, options in ENCODINGS.items():
        ordered = [counts[k] for k in by_area] if name == SORTED else counts
        table = pa.table({"rle_counts": pa.array(ordered, pa.binary())})
        common = {"use_dictionary": False, "write_statistics": False, "data_page_size": PAGE_BYTES}
        size, writing, reading = 0, [], []
        for _ in range(REPEATS):
            sink = pa.BufferOutputStream()
            started = time.process_time()
            pq.write_table(table, sink, row_group_size=ROWS_PER_GROUP, **common | options)
            writing.append(time.process_time() - started)
            data = sink.getvalue()
            started = time.process_time()
            pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
            reading.append(time.process_time() - started)
            size = data.size
        encoded[name] = Encoded(size / length, length / min(writing) / 1e6, length / min(reading) / 1e6)
    return encoded
