"""TIFF files of many kinds, beside the samples that were written into them."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

HEIGHT, WIDTH = 19, 37  # neither fills its last strip, tile or byte
STORAGES: dict[str, dict[str, Any]] = {
    "one strip": {},
    "strips": {"rowsperstrip": 5},
    "tiles": {"tile": (16, 32)},
}
COMPRESSIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "lzw": {"compression": "lzw"},
    "deflate": {"compression": "deflate"},
    "packbits": {"compression": "packbits"},
    "zstd": {"compression": "zstd"},
}


@dataclass(frozen=True, eq=False)
class Written:
    """A TIFF file and what it holds."""

    name: str
    data: bytes
    samples_HWS: NDArray[Any]
    bits: int
    white_is_zero: bool = False

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """The RGB pixels that it shows: the high 8 bits, or fewer bits spread over 0..255."""
        values = self.samples_HWS.astype(np.float64)
        values = values // 2 ** (self.bits - 8) if self.bits >= 8 else np.floor(values * 255 / (2**self.bits - 1) + 0.5)
        levels = (255 - values if self.white_is_zero else values).astype(np.uint8)
        return np.broadcast_to(levels, (HEIGHT, WIDTH, 3))


def write(samples_HWS: NDArray[Any], planar: bool = False, **options: Any) -> bytes:
    """A TIFF with one page; `options` are those of `tifffile.imwrite`."""
    samples = samples_HWS[..., 0] if samples_HWS.shape[2] == 1 else samples_HWS
    if samples.ndim == 3:
        samples = np.moveaxis(samples, 2, 0) if planar else samples
        options["planarconfig"] = "separate" if planar else "contig"
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, samples, metadata=None, **options)
    return buffer.getvalue()


def noise(samples: int, bits: int, seed: int = 0) -> NDArray[Any]:
    """Random unsigned samples (HEIGHT, WIDTH, samples) with both extremes in each channel."""
    values = np.random.default_rng(seed).integers(0, 2**bits, (HEIGHT, WIDTH, samples))
    values[0, 0], values[-1, -1] = 0, 2**bits - 1
    return values.astype(np.uint8 if bits <= 8 else np.uint16)


def gray() -> Iterator[Written]:
    """Grey of 8 and 16 bits: both photometric interpretations and byte orders, each storage and compression."""
    for bits, photometric, order in product((8, 16), ("minisblack", "miniswhite"), "<>"):
        for (storage, layout), (compression, packing) in product(STORAGES.items(), COMPRESSIONS.items()):
            samples = noise(1, bits)
            data = write(samples, photometric=photometric, byteorder=order, **layout, **packing)
            name = f"gray {bits} {photometric} {order} {storage} {compression}"
            yield Written(name, data, samples, bits, photometric == "miniswhite")


def rgb() -> Iterator[Written]:
    """Three colours of 8 and 16 bits: contiguous and planar, each byte order, storage, compression and predictor."""
    for bits, planar, order, predictor in product((8, 16), (False, True), "<>", (False, True)):
        for (storage, layout), (compression, packing) in product(STORAGES.items(), COMPRESSIONS.items()):
            if predictor and compression in ("none", "packbits"):
                continue
            samples = noise(3, bits)
            options = layout | packing | ({"predictor": True} if predictor else {})
            data = write(samples, planar, photometric="rgb", byteorder=order, **options)
            arrangement = "planar" if planar else "contiguous"
            name = f"rgb {bits} {arrangement} {order} {storage} {compression}{' predictor' * predictor}"
            yield Written(name, data, samples, bits)


def depths() -> Iterator[Written]:
    """Grey and RGB of each depth from 1 to 16 bits, written without a library."""
    for bits, samples, order, photometric in product(range(1, 17), (1, 3), "<>", (0, 1, 2)):
        if (photometric == 2) != (samples == 3):
            continue
        values = noise(samples, bits)
        strip = values.astype(f"{order}u2").tobytes() if bits == 16 else packed(values, bits)
        data = assemble(strip, values, bits, photometric, order)
        yield Written(f"{samples} x {bits} bits {order} {photometric}", data, values, bits, photometric == 0)


def packed(samples_HWS: NDArray[Any], bits: int) -> bytes:
    """Samples as TIFF packs them: the highest bit first, each row from a byte of its own."""
    bits_HWSB = samples_HWS[..., None] >> np.arange(bits - 1, -1, -1) & 1
    return np.packbits(bits_HWSB.reshape(len(samples_HWS), -1).astype(np.uint8), axis=1).tobytes()


_TYPES = {"H": 3, "I": 4, "s": 2}


def assemble(
    strip: bytes, samples_HWS: NDArray[Any], bits: int, photometric: int, order: str = "<", **tags: Any
) -> bytes:
    """A TIFF of one strip, written without a library. Further tags by number: `t338=(0,)`; a str value is ASCII."""
    height, width, samples = samples_HWS.shape
    body = 8 + len(strip) + len(strip) % 2
    fields: dict[int, tuple[str, Any]] = {
        256: ("I", (width,)),
        257: ("I", (height,)),
        258: ("H", (bits,) * samples),
        259: ("H", (1,)),
        262: ("H", (photometric,)),
        273: ("I", (8,)),
        277: ("H", (samples,)),
        278: ("I", (height,)),
        279: ("I", (len(strip),)),
    }
    for name, value in tags.items():
        fields[int(name[1:])] = ("s", value.encode() + b"\0") if isinstance(value, str) else ("H", value)
    entries, extra = b"", b""
    start = body + 2 + 12 * len(fields) + 4
    for tag, (kind, value) in sorted(fields.items()):
        raw = value if kind == "s" else struct.pack(f"{order}{len(value)}{kind}", *value)
        entries += struct.pack(f"{order}HHI", tag, _TYPES[kind], len(value))
        if len(raw) <= 4:
            entries += raw.ljust(4, b"\0")
        else:
            entries += struct.pack(f"{order}I", start + len(extra))
            extra += raw + b"\0" * (len(raw) % 2)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", body)
    directory = struct.pack(f"{order}H", len(fields)) + entries + bytes(4)
    return head + strip.ljust(body - 8, b"\0") + directory + extra
