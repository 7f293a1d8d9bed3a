"""Conversion of samples of any depth to 8 bits.

Shapes: H W image size, C samples per pixel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskmill.pipeline.config import ValueRange
from maskmill.pipeline.errors import ImageError

_BLOCK_ROWS = 256  # rows converted at once, to limit the float64 intermediates


def to_8_bits(
    samples_HWC: NDArray[Any], white: int | None, value_range: ValueRange | None, nodata: float | None = None
) -> NDArray[np.uint8]:
    """Maps samples to 0..255.

    - Unsigned integers of up to 8 bits: 0..`white` is scaled to 0..255. `value_range` does not apply.
    - Unsigned integers of more bits: the high 8 bits; if `white` is not 2^n - 1, scaled to 0..255 and rounded.
    - With `value_range`: LOW and below become 0, HIGH and above become 255, linear and rounded in between. Percentiles
      are computed per channel, without samples that are NaN, infinite or equal to `nodata`.
    - NaN becomes 0; with `value_range`, `nodata` becomes 0 too.

    `white` is the largest possible sample, or None if that does not define white (signed, 32-bit and float samples).
    Raises ImageError if both `white` and `value_range` are None.
    """
    if white == 255:
        return samples_HWC.astype(np.uint8, copy=False)
    if white is not None and white < 255:
        return ((samples_HWC.astype(np.uint16) * 255 + white // 2) // white).astype(np.uint8)
    if value_range is not None:
        channels = [_stretch(samples_HWC[..., c], value_range, nodata) for c in range(samples_HWC.shape[2])]
        return np.stack(channels, axis=2)
    if white is None:
        raise ImageError(
            f"{samples_HWC.dtype} samples have no defined white: set the range with --value-range LOW,HIGH or 2%,98%"
        )
    bits = white.bit_length()
    if white == 2**bits - 1:
        return (samples_HWC >> (bits - 8)).astype(np.uint8)
    return ((samples_HWC.astype(np.uint32) * 255 + white // 2) // white).astype(np.uint8)


def alpha_to_8_bits(alpha_HW: NDArray[Any], white: int | None) -> NDArray[np.uint8]:
    """Alpha as 0..255. Opaque is 1.0 for floats and the largest value of the type for integers."""
    if alpha_HW.dtype.kind == "f":
        return (np.clip(np.nan_to_num(alpha_HW, nan=0.0), 0, 1) * 255 + 0.5).astype(np.uint8)
    return to_8_bits(alpha_HW[..., None], white or int(np.iinfo(alpha_HW.dtype).max), None)[..., 0]


def _stretch(samples_HW: NDArray[Any], value_range: ValueRange, nodata: float | None) -> NDArray[np.uint8]:
    low, high = value_range.low, value_range.high
    if value_range.percentiles:
        valid = np.isfinite(samples_HW)
        if nodata is not None:
            valid &= samples_HW != nodata
        low, high = np.percentile(samples_HW[valid], (low, high)).tolist() if valid.any() else (0.0, 0.0)
    span = max(high - low, np.finfo(np.float64).smallest_subnormal)
    mapped_HW = np.empty(samples_HW.shape, np.uint8)
    for start in range(0, len(samples_HW), _BLOCK_ROWS):
        block = samples_HW[start : start + _BLOCK_ROWS].astype(np.float64)
        if nodata is not None:
            block[block == nodata] = np.nan
        with np.errstate(invalid="ignore", over="ignore"):
            scaled = np.clip((block - low) * 255 / span, 0, 255)
        mapped_HW[start : start + _BLOCK_ROWS] = (np.nan_to_num(scaled, nan=0.0) + 0.5).astype(np.uint8)
    return mapped_HW
