"""Decodes TIFF files to RGB pictures: tifffile reads the strips or tiles, this module converts the colours.

All TIFFs are read here, because Pillow reads some wrongly without an error (16-bit samples that are planar or
min-is-white) and some not at all. Only features that tests compare with a second decoder are supported. Others raise
ImageError with the name of the feature.

Shapes: H W image size, S samples per pixel in the file, C chosen samples.
"""

from __future__ import annotations

import io
import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from maskmill.pipeline.config import DecodingConfig
from maskmill.pipeline.decoding.layers import over_white, rgb_picture
from maskmill.pipeline.decoding.levels import alpha_to_8_bits, to_8_bits
from maskmill.pipeline.errors import ImageError

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_JPEG, _WEBP = 7, 50001
# Others are rare, or their headers can request unlimited memory.
_COMPRESSIONS = {1, 2, 3, 4, 5, _JPEG, 8, 32946, 32773, 50000, _WEBP}
_PREDICTED = {5, 8, 32946, 50000}  # for others libtiff ignores the predictor and tifffile applies it
_NONE, _HORIZONTAL, _FLOATING_POINT = 1, 2, 3
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR, _CIELAB = 0, 1, 2, 3, 5, 6, 8
_COLOURS = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4, _YCBCR: 3, _CIELAB: 3}
_ASSOCIATED, _UNASSOCIATED = 1, 2  # values of ExtraSamples for alpha
_MAX_BANDS = 4  # with more, the user must choose the colours with --bands
# Limits in bytes for a strip or tile, which is decoded whole with all bands; the larger one applies.
_SEGMENT_BYTES_PER_PIXEL = 8
_SEGMENT_BYTES = 64 * 2**20

_MAX_REASON_CHARACTERS = 200
# Tags of width, length and depth of image and tile, compression, photometric interpretation, samples per pixel, rows
# per strip, planar configuration, predictor.
_SINGLE_VALUES = {256, 257, 259, 262, 277, 278, 284, 317, 322, 323, 32997, 32998}
_INTEGERS = {3, 4, 16}  # types of TIFF tags: 16, 32 and 64 bits
_MAX_ENTRIES = 4096  # tifffile refuses more


def is_tiff(data: bytes) -> bool:
    """Whether `data` begins as TIFF and BigTIFF files do."""
    return data.startswith(_MAGIC)


def read_tiff(data: bytes, decoding: DecodingConfig) -> tuple[Image.Image, int]:
    """Decodes the first page to RGB by the rules of `decode_image`, and returns its orientation (1..8, as in EXIF).

    Raises ImageError if a feature is not supported or data is missing, and other exceptions for some damaged files.
    """
    _check_single_values(data)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page: Any = file.pages.first  # Any: tifffile's types have optional attributes for unusual kinds of files
        check_size(page.imagewidth, page.imagelength, decoding.max_image_pixels)
        _check_features(page, decoding)
        layout = _lay_out(page, decoding)
        samples_HWC = _read_samples(page, data, layout.channels, decoding.max_image_pixels)
        return _to_rgb(page, layout, samples_HWC, decoding), _orientation(page)


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raises ImageError if a picture has no pixels or more than `max_pixels`."""
    if width < 1 or height < 1:
        raise ImageError(f"damaged image: {width} x {height} pixels")
    if width * height > max_pixels:
        raise ImageError(f"{width} x {height} pixels: the limit is {max_pixels} in all (--max-image-pixels)")


def _check_single_values(data: bytes) -> None:
    """Raises ImageError if a size of the first page is not one integer; tifffile would multiply whole arrays."""
    order = "<" if data[:1] == b"I" else ">"
    big = 43 in data[2:4]
    (start,) = struct.unpack_from(f"{order}{'Q' if big else 'I'}", data, 8 if big else 4)
    (entries,) = struct.unpack_from(f"{order}{'Q' if big else 'H'}", data, start)
    for entry in range(min(entries, _MAX_ENTRIES)):
        place = start + (8 + 20 * entry if big else 2 + 12 * entry)
        tag, kind, count = struct.unpack_from(f"{order}HH{'Q' if big else 'I'}", data, place)
        if tag in _SINGLE_VALUES and (count != 1 or kind not in _INTEGERS):
            raise ImageError(f"damaged image: TIFF tag {tag} is not one integer")


@dataclass(frozen=True)
class _Layout:
    """Indices of the colours and of alpha among the S samples of a pixel."""

    colours: tuple[int, ...]
    alpha: int | None
    premultiplied: bool

    @property
    def channels(self) -> tuple[int, ...]:
        return self.colours if self.alpha is None else (*self.colours, self.alpha)


def _check_features(page: Any, decoding: DecodingConfig) -> None:
    """Raises ImageError if the page has a feature that tifffile or this module does not support."""

    def refuse(feature: str) -> None:
        raise ImageError(f"not supported: TIFF with {feature}"[:_MAX_REASON_CHARACTERS])

    if page.compression not in _COMPRESSIONS:
        refuse(f"compression {_name(page.compression)}")
    if page.predictor != _NONE:
        kinds = {_HORIZONTAL: "ui", _FLOATING_POINT: "f"}.get(page.predictor, "")
        if page.compression not in _PREDICTED or page.dtype is None or page.dtype.kind not in kinds:
            refuse(f"predictor {_name(page.predictor)} for {page.dtype} and compression {_name(page.compression)}")
    if page.photometric not in _COLOURS:
        refuse(f"photometric interpretation {_name(page.photometric)}")
    if page.imagedepth != 1 or page.tiledepth != 1:
        refuse("volumes (ImageDepth)")
    if page.planarconfig not in (1, 2):
        refuse(f"planar configuration {_name(page.planarconfig)}")
    if isinstance(page.bitspersample, tuple):
        refuse(f"samples of different depths {page.bitspersample}")
    if page.dtype is None or page.dtype.kind not in "buif":
        refuse(f"samples of {page.bitspersample} bits and format {_name(page.sampleformat)}")
    if page.compression in (_JPEG, _WEBP) and page.bitspersample != 8:
        refuse(f"samples of {page.bitspersample} bits and compression {_name(page.compression)}")
    gray = page.photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO)
    if gray and page.compression == _JPEG and page.planarconfig == 1 and page.samplesperpixel > 1:
        # libjpeg takes three samples for YCbCr by default.
        refuse(f"{page.samplesperpixel} bands of grey and JPEG compression")
    if page.photometric in (_PALETTE, _CMYK, _YCBCR) and _white(page) is None:
        refuse(f"{page.dtype} samples and photometric interpretation {_name(page.photometric)}")
    if page.photometric == _CMYK and page.tags.valueof(332, 1) != 1:
        refuse("inks other than CMYK")
    if page.photometric == _CIELAB and (page.bitspersample != 8 or page.compression == _JPEG):
        refuse(f"CIELAB, samples of {page.bitspersample} bits and compression {_name(page.compression)}")
    if page.photometric == _YCBCR:
        _check_ycbcr(page, refuse)


def _check_ycbcr(page: Any, refuse: Any) -> None:
    if page.samplesperpixel != 3 or page.bitspersample != 8:
        refuse("YCbCr that is not three samples of 8 bits")
    if page.compression == _JPEG:
        if page.planarconfig != 1:
            refuse("YCbCr in planes and JPEG compression")
        return  # libjpeg converts it to RGB
    if tuple(page.tags.valueof(530, (2, 2))) != (1, 1):  # if the tag is missing, chroma is subsampled
        refuse("chroma subsampling without JPEG compression")
    if 529 in page.tags and not np.allclose(_rationals(page, 529), (0.299, 0.587, 0.114), atol=1e-4):
        refuse("YCbCr coefficients other than those of CCIR 601")
    if 532 in page.tags and _rationals(page, 532) != [0, 255, 128, 255, 128, 255]:
        refuse("a YCbCr range (ReferenceBlackWhite) other than the full one")


def _rationals(page: Any, tag: int) -> list[float]:
    parts = page.tags.valueof(tag)
    return [numerator / denominator for numerator, denominator in zip(parts[::2], parts[1::2], strict=True)]


def _lay_out(page: Any, decoding: DecodingConfig) -> _Layout:
    samples, extras = page.samplesperpixel, tuple(page.extrasamples)
    kinds = dict(zip(range(samples - len(extras), samples), extras, strict=True))
    alpha = next((k for k, kind in kinds.items() if kind in (_ASSOCIATED, _UNASSOCIATED)), None)
    premultiplied = alpha is not None and kinds[alpha] == _ASSOCIATED
    colours = _COLOURS[page.photometric]
    if page.photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB) and samples > 1:
        if decoding.bands:
            if max(decoding.bands) > samples:
                raise ImageError(f"{samples} bands: band {max(decoding.bands)} of --bands does not exist")
            return _Layout(tuple(band - 1 for band in decoding.bands), None, False)
        bands = samples - (alpha is not None)
        if bands > _MAX_BANDS:
            raise ImageError(f"{bands} bands: choose red, green and blue with --bands R,G,B")
        if bands > 2:
            colours = 3  # many programs write RGB as grey with extra samples
    if samples < colours or (alpha is not None and alpha < colours):
        raise ImageError(f"damaged image: {samples} samples per pixel, {len(extras)} of them extra")
    return _Layout(tuple(range(colours)), alpha, premultiplied)


def _read_samples(page: Any, data: bytes, channels: tuple[int, ...], max_pixels: int) -> NDArray[Any]:
    """Reads the chosen samples (H, W, C) in native byte order, one strip or tile at a time."""
    height, width = page.imagelength, page.imagewidth
    rows, columns = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, width)
    planar = page.planarconfig == 2 and page.samplesperpixel > 1
    size = rows * columns * (1 if planar else page.samplesperpixel) * page.dtype.itemsize
    limit = max(_SEGMENT_BYTES, _SEGMENT_BYTES_PER_PIXEL * max_pixels)
    if size > limit:
        raise ImageError(f"a strip or tile has {size} bytes: the limit is {limit} (8 * --max-image-pixels)")
    per_plane = math.ceil(height / rows) * math.ceil(width / columns)
    segments = list(zip(page.dataoffsets, page.databytecounts, strict=False))
    if len(segments) < per_plane * (page.samplesperpixel if planar else 1):
        raise ImageError(f"damaged image: {len(segments)} strips or tiles, fewer than its size needs")
    tables = {"jpegtables": page.jpegtables} if page.compression == _JPEG else {}
    dtype = np.uint8 if page.dtype.kind == "b" else page.dtype
    in_order = channels == tuple(range(len(channels)))  # then a slice avoids a copy
    chosen = slice(len(channels)) if in_order else list(channels)
    samples_HWC = np.zeros((height, width, len(channels)), dtype)
    for plane in sorted(set(channels)) if planar else [0]:
        targets = [c for c, channel in enumerate(channels) if channel == plane] if planar else slice(None)
        for index in range(plane * per_plane, (plane + 1) * per_plane):
            start, length = segments[index]
            if not (start and length) or start + length > len(data):
                raise ImageError("truncated image: a strip or tile is missing or cut off")
            encoded = data[start : start + length]
            if page.compression in (_JPEG, _WEBP):
                _check_embedded(encoded, rows * columns)
            segment_1hwS, (_, _, row, column, _), _ = page.decode(encoded, index, **tables)
            block_hwS = segment_1hwS[0, : height - row, : width - column]
            chosen_hwC = block_hwS if planar else block_hwS[..., chosen]
            samples_HWC[row : row + len(chosen_hwC), column : column + chosen_hwC.shape[1], targets] = chosen_hwC
    return samples_HWC


def _check_embedded(encoded: bytes, pixels: int) -> None:
    """Raises ImageError if the JPEG or WebP data of a strip or tile has more than `pixels` pixels or is truncated."""
    try:
        image = Image.open(io.BytesIO(encoded), formats=("JPEG", "WEBP"))
    except UnidentifiedImageError as error:
        raise ImageError("damaged image: the JPEG or WebP data of a strip or tile cannot be read") from error
    with image:
        if image.width * image.height > pixels:
            raise ImageError(f"damaged image: a strip or tile has {image.width} x {image.height} pixels")
        # libjpeg fills a truncated image with grey.
        if image.format == "JPEG" and b"\xff\xd9" not in encoded[-1000:]:
            raise ImageError("truncated image: the JPEG data has no end marker")


def _to_rgb(page: Any, layout: _Layout, samples_HWC: NDArray[Any], decoding: DecodingConfig) -> Image.Image:
    white, count = _white(page), len(layout.colours)
    colours_HWC = samples_HWC[..., :count]
    if page.photometric == _PALETTE:
        picture = Image.fromarray(_palette(page)[colours_HWC[..., 0]])
    elif page.photometric == _CMYK:
        picture = Image.fromarray(to_8_bits(colours_HWC, white, None), "CMYK").convert("RGB")
    elif page.photometric == _YCBCR and page.compression != _JPEG:
        picture = Image.fromarray(to_8_bits(colours_HWC, white, None), "YCbCr").convert("RGB")
    elif page.photometric == _CIELAB:
        picture = Image.fromarray(colours_HWC, "LAB").convert("RGB")
    else:
        levels_HWC = to_8_bits(colours_HWC, white, decoding.value_range, page.nodata if 42113 in page.tags else None)
        if page.photometric == _WHITE_IS_ZERO:
            levels_HWC = 255 - levels_HWC
        picture = rgb_picture(levels_HWC)
    if layout.alpha is None:
        return picture
    alpha_HW = alpha_to_8_bits(samples_HWC[..., count], white)
    return over_white(picture, Image.fromarray(alpha_HW), layout.premultiplied)


def _white(page: Any) -> int | None:
    """The largest possible value of unsigned samples of up to 16 bits; None for others."""
    unsigned = page.dtype.kind in "bu" and page.bitspersample <= 16
    return 2**page.bitspersample - 1 if unsigned else None


def _palette(page: Any) -> NDArray[np.uint8]:
    """The colours (2^bits, 3)."""
    colours_3N = np.asarray(page.colormap, np.uint16)
    if colours_3N.shape != (3, 2**page.bitspersample):
        raise ImageError("damaged image: the size of the palette does not match the bits per sample")
    # Some programs write 8-bit values; libtiff detects them in the same way.
    return np.ascontiguousarray((colours_3N if colours_3N.max() < 256 else colours_3N >> 8).astype(np.uint8).T)


def _orientation(page: Any) -> int:
    value = page.tags.valueof(274, 1)
    return value if isinstance(value, int) else 1


def _name(value: Any) -> str:
    return getattr(value, "name", None) or str(value)
