"""TIFF files of many kinds, beside the samples that were written into them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
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
    options: dict[str, Any]


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
    """Grey of 1 to 16 bits: both photometric interpretations and byte orders, each storage and compression."""
    for bits in (1, 2, 4, 8, 10, 12, 16):
        samples = noise(1, bits)
        for photometric in ("minisblack", "miniswhite"):
            for order in "<>":
                for storage, layout in STORAGES.items():
                    for compression, packing in COMPRESSIONS.items():
                        if bits not in (8, 16) and (storage == "tiles" or packing):
                            continue  # tifffile writes packed samples in strips, without compression
                        options = {"photometric": photometric, "byteorder": order, **layout, **packing}
                        depth = {} if bits in (8, 16) else {"bitspersample": bits}
                        stored = samples > 0 if bits == 1 else samples
                        depth = {} if bits == 1 else depth
                        name = f"gray {bits} {photometric} {order} {storage} {compression}"
                        yield Written(name, write(stored, **options, **depth), samples, bits, options)


def rgb() -> Iterator[Written]:
    """Three colours of 8 and 16 bits: contiguous and planar, each storage, compression and predictor."""
    for bits in (8, 16):
        samples = noise(3, bits)
        for planar in (False, True):
            for order in "<>":
                for storage, layout in STORAGES.items():
                    for compression, packing in COMPRESSIONS.items():
                        for predictor in (False, True):
                            if predictor and compression in ("none", "packbits"):
                                continue
                            options = {"photometric": "rgb", "byteorder": order, **layout, **packing}
                            name = f"rgb {bits} {'planar' if planar else 'contiguous'} {order} {storage} {compression}"
                            data = write(samples, planar, **options, **({"predictor": True} if predictor else {}))
                            yield Written(name + " predictor" * predictor, data, samples, bits, options)
