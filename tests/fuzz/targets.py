"""What is fuzzed: each target takes any bytes, and raises where the code that reads them does what it must not."""

from __future__ import annotations

import atexit
import io
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st
from PIL import Image

from maskmill.filters import rle
from maskmill.pipeline.checks import Chain, check_shard
from maskmill.pipeline.config import DecodingConfig
from maskmill.pipeline.errors import ImageError, SourceError
from maskmill.pipeline.images import decode_image
from maskmill.pipeline.parts import images_key, masks_key
from maskmill.pipeline.records import Failure, Shard
from maskmill.pipeline.sources import open_source
from maskmill.pipeline.table import encode_part, images_part
from tests import hostile, tiffs
from tests.fakes import image_result, picture
from tests.fuzz.mutations import mutated, repair_png, repair_tar

MAX_PIXELS = 100_000
DECODING = DecodingConfig(MAX_PIXELS)
SIZE = (6, 7)  # of the masks whose run lengths are fuzzed


@dataclass(frozen=True)
class Target:
    """Something that reads what strangers made, and what to feed it with."""

    inputs: st.SearchStrategy[bytes]
    check: Callable[[bytes], None]


def check_image(data: bytes) -> None:
    """A picture is decoded, or refused in one line without addresses."""
    try:
        pixels_HW3 = decode_image(data, DECODING).pixels
    except ImageError as error:
        reason = str(error)
    else:
        reason = ""
        height, width, channels = pixels_HW3.shape
        assert (pixels_HW3.dtype, channels) == (np.uint8, 3)
        assert 0 < height * width <= MAX_PIXELS
    assert "\n" not in reason
    assert " at 0x" not in reason
    assert len(reason) <= 200


def check_tar(data: bytes) -> None:
    """A tar gives images and failures under ids of their own that lead nowhere."""
    _read("a.tar", data)


def check_parquet(data: bytes) -> None:
    """A Parquet file is refused, or gives images and failures under ids of their own that lead nowhere."""
    _read("a.parquet", data)


def _read(name: str, data: bytes) -> None:
    (_folder() / name).write_bytes(data)
    try:
        source = open_source(str(_folder() / name))
        records = [record for shard in source.plan(2) for record in source.read(shard)]
    except SourceError as error:
        records = []
        reasons = [str(error)]
    else:
        reasons = [record.data.reason for record in records if isinstance(record.data, Failure)]
    ids = [record.image_id for record in records]
    assert len(set(ids)) == len(ids)
    for record in records:
        assert not {"", ".", ".."} & set(record.image_id.split("/"))
        record.image_id.encode()
    assert not any("\n" in reason for reason in reasons)


@cache
def _folder() -> Path:
    folder = tempfile.mkdtemp(prefix="maskmill-fuzz-")
    atexit.register(shutil.rmtree, folder)
    return Path(folder)


def check_rle(counts: bytes) -> None:
    """Run lengths are decoded, and measured the same, or refused by both."""
    area, boxes, faults = rle.measure([counts], *np.array([SIZE]).T)
    try:
        mask_HW = rle.decode(counts, *SIZE)
    except ValueError:
        assert faults
        return
    assert not faults
    assert mask_HW.shape == SIZE
    assert area[0] == mask_HW.sum()
    assert tuple(boxes[0]) == rle.bbox(rle.encode(mask_HW), *SIZE)


def check_part(data: bytes) -> None:
    """Verify finds something wrong with a part, or nothing, but never fails itself."""
    shard = Shard(0, "/photographs", ("a", "b"))
    objects = {masks_key(shard.name): data, images_key(shard.name): images_part(_part())}
    for offence in check_shard(Chain(shard, 0, objects, "id")).offences:
        assert "\n" not in offence


@cache
def _part() -> bytes:
    masks_NHW = np.random.default_rng(0).random((3, *SIZE)) > 0.5
    return encode_part(Shard(0, "/photographs", ("a", "b")), [image_result(name, masks_NHW) for name in "ab"], "id")


def _pictures() -> list[bytes]:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 13, 3), np.uint8))
    files: list[bytes] = []
    for form in hostile.FORMATS:
        buffer = io.BytesIO()
        noise.save(buffer, form)
        files.append(buffer.getvalue())
    files += [file.data for kind in (tiffs.gray, tiffs.rgb, tiffs.depths) for file in islice(kind(), 0, None, 7)]
    small = (*hostile.harmless_pictures().values(), *hostile.refused_pictures().values())
    return files + [data for data in small if 0 < len(data) < 5000]


def _tars() -> list[bytes]:
    return [data for data in hostile.tars().values() if 0 < len(data) < 30_000]


def _parquets() -> list[bytes]:
    pictures, paths = [picture(seed) for seed in range(6)], [f"{seed}.png" for seed in range(6)]
    nested = pa.StructArray.from_arrays([pa.array(pictures), pa.array(paths)], ["bytes", "path"])
    tables = [pa.table({"image": pictures, "key": paths}), pa.table({"image": nested, "label": range(6)})]
    files: list[bytes] = []
    for table in tables:
        for compression in ("none", "zstd"):
            sink = pa.BufferOutputStream()
            pq.write_table(table, sink, row_group_size=4, compression=compression)
            files.append(sink.getvalue().to_pybytes())
    return files


def _run_lengths() -> list[bytes]:
    masks_NHW = np.random.default_rng(0).random((20, *SIZE)) > 0.5
    return [rle.encode(mask_HW) for mask_HW in (*masks_NHW, np.ones(SIZE, np.bool_), np.zeros(SIZE, np.bool_))]


TARGETS = {
    "image": Target(mutated(_pictures(), repair_png), check_image),
    "tar": Target(mutated(_tars(), repair_tar), check_tar),
    "parquet": Target(mutated(_parquets()), check_parquet),
    "rle": Target(mutated(_run_lengths()) | st.binary(max_size=40), check_rle),
    "part": Target(mutated([_part()]), check_part),
}
