"""Reads PGM and PPM files with more than 8 bits per sample; Pillow would round colours differently."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskmill.pipeline.errors import ImageError

_SPACE = rb"(?:\s|#[^\r\n]*[\r\n])+"
_HEADER = re.compile(rb"P([2356])" + (_SPACE + rb"(\d{1,10})") * 3 + rb"(?:#[^\r\n]*[\r\n])?\s")


def deep_netpbm(data: bytes) -> re.Match[bytes] | None:
    """The header if `data` is a PGM or PPM file with a white above 255, else None."""
    header = _HEADER.match(data[:10_000])
    return header if header and 255 < int(header[4]) < 65536 else None


def size(header: re.Match[bytes]) -> tuple[int, int]:
    """Width and height in pixels."""
    return int(header[2]), int(header[3])


def read_samples(data: bytes, header: re.Match[bytes]) -> tuple[NDArray[Any], int]:
    """The unscaled samples (H, W, 1 or 3) and the value of white.

    Raises ImageError if samples are missing or above white.
    """
    (width, height), white = size(header), int(header[4])
    channels = 3 if header[1] in b"36" else 1
    count = width * height * channels
    plain = header[1] in b"23"
    text = re.sub(rb"#[^\r\n]*", b" ", data[header.end() :]) if plain else b""
    if not re.fullmatch(rb"[\d\s]*", text):
        raise ImageError("damaged image: a sample is not a number")
    # A sample takes at least two bytes; in text, a digit and a space.
    if count == 0 or (len(text) + 1 if plain else len(data) - header.end()) < 2 * count:
        raise ImageError(f"truncated image: fewer than {count} samples")
    if plain:
        samples = np.fromstring(text, np.float64, count, sep=" ")
    else:
        samples = np.frombuffer(data, ">u2", count, header.end())
    if samples.max() > white:
        raise ImageError(f"damaged image: a sample is {samples.max():g}, above white ({white})")
    return samples.astype(np.uint16).reshape(height, width, channels), white
