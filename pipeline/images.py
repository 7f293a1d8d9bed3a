"""Decodes image files to upright RGB pixels."""

from __future__ import annotations

import hashlib
import io
import logging
import re
import warnings
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from maskmill.pipeline.config import DEFAULT_DECODING, DecodingConfig
from maskmill.pipeline.decoding import netpbm
from maskmill.pipeline.decoding.layers import over_white, rgb_picture
from maskmill.pipeline.decoding.levels import alpha_to_8_bits, to_8_bits
from maskmill.pipeline.decoding.tiff import check_size, is_tiff, read_tiff
from maskmill.pipeline.errors import ImageError, one_line_cause
from maskmill.pipeline.records import DecodedImage

# Raster formats that every build of Pillow decodes. Not EPS or PDF, which start other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
MAX_REASON_CHARACTERS = 180  # of a decoder's message
_DECODERS = re.compile(r"(PIL|tifffile)\.")

# They log oddities of files. Errors that matter become failed rows.
for _library in ("tifffile", "imagecodecs"):
    logging.getLogger(_library).setLevel(logging.CRITICAL + 1)

# EXIF orientation -> the operation that turns the picture upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_image(data: bytes, decoding: DecodingConfig) -> DecodedImage:
    """Decodes a JPEG, PNG, WebP, GIF, BMP, TIFF or PPM/PGM/PBM file. Thread-safe.

    - Several frames or pages: the first one.
    - The EXIF orientation (in TIFF: the tag) is applied; if it cannot be read, the image counts as upright. Colour
      profiles are not applied.
    - Transparency (alpha, or a transparent colour or palette entry) is composited over white, as image viewers do.
      Alpha that is zero everywhere is ignored, and so are extra samples of a TIFF that are not declared as alpha.
    - CMYK is converted by the formula of Pillow; in JPEGs it is inverted, as Adobe writes it.
    - The first three bands of a TIFF are red, green and blue; with more than four, `decoding.bands` is needed.
    - 16-bit unsigned samples keep their high byte, so black stays black and white stays white. `decoding.value_range`
      replaces this for samples of more than 8 bits; signed, 32-bit and float samples need it.

    Raises ImageError if the picture has too many pixels (checked before decoding), is truncated or damaged, or has a
    feature that is not supported. The message is the same for the same bytes.
    """
    if not data:
        raise ImageError("the file is empty")
    _prepare_decoders()
    try:
        if is_tiff(data):
            picture, orientation = read_tiff(data, decoding)
        elif header := netpbm.deep_netpbm(data):
            check_size(*netpbm.size(header), decoding.max_image_pixels)
            picture, orientation = _gray_or_rgb(*netpbm.read_samples(data, header), decoding), 1
        else:
            picture, orientation = _read_with_pillow(data, decoding)
        pixels = _upright(picture, orientation)
    except ImageError:
        raise
    except UnidentifiedImageError as error:  # its message has the memory address of a buffer
        raise ImageError(_why_not_identified(data)) from error
    except Exception as error:  # decoders raise any type on damage: OSError, SyntaxError, struct.error...
        raise ImageError(f"damaged image: {one_line_cause(error, MAX_REASON_CHARACTERS)}") from error
    return DecodedImage(pixels, hashlib.sha256(data).hexdigest())


def to_pixels(image: Image.Image) -> NDArray[np.uint8]:
    """RGB pixels (H, W, 3) of a Pillow image by the rules of `decode_image`. ImageError for more than 8 bits."""
    if image.mode == "F" or image.mode.startswith("I"):
        raise ImageError(f"a Pillow image of mode {image.mode} has more than 8 bits per sample; give the path instead")
    return _upright(_to_rgb(image, DEFAULT_DECODING), _orientation(image))


def _upright(picture: Image.Image, orientation: int) -> NDArray[np.uint8]:
    transposition = _UPRIGHT.get(orientation)
    return np.array(picture if transposition is None else picture.transpose(transposition))


def _why_not_identified(data: bytes) -> str:
    """The error of the Pillow plugin that accepts the first bytes of the file, which `Image.open` hides."""
    for form in FORMATS:
        factory, accept = Image.OPEN[form]
        if accept is not None and accept(data[:16]) is True:
            try:
                factory(io.BytesIO(data), "").close()
            except Exception as error:  # noqa: BLE001 - the same as in decode_image
                if "not identified" not in str(error):  # this message gives no reason
                    return f"{form}: {one_line_cause(error, MAX_REASON_CHARACTERS)}"
    return f"not a readable image of a known format ({', '.join(FORMATS)})"


def _read_with_pillow(data: bytes, decoding: DecodingConfig) -> tuple[Image.Image, int]:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        check_size(*image.size, decoding.max_image_pixels)
        if image.format == "PNG" and str(image.tile[0].args).endswith(";16B"):
            return _read_deep_png(data, decoding), _orientation(image)
        image.load()
        return _to_rgb(image, decoding), _orientation(image)


def _read_deep_png(data: bytes, decoding: DecodingConfig) -> Image.Image:
    """Decodes a PNG with 16 bits per sample; Pillow would reduce its colours to 8 bits."""
    samples = imagecodecs.png_decode(data)
    samples_HWC = samples[..., None] if samples.ndim == 2 else samples
    count = 1 if samples_HWC.shape[2] < 3 else 3
    picture = _gray_or_rgb(samples_HWC[..., :count], 65_535, decoding)
    if samples_HWC.shape[2] == count:
        return picture
    return over_white(picture, Image.fromarray(alpha_to_8_bits(samples_HWC[..., count], 65_535)))


def _gray_or_rgb(samples_HWC: NDArray[Any], white: int | None, decoding: DecodingConfig) -> Image.Image:
    return rgb_picture(to_8_bits(samples_HWC, white, decoding.value_range))


def _to_rgb(image: Image.Image, decoding: DecodingConfig) -> Image.Image:
    if image.mode == "F":  # PFM
        return _gray_or_rgb(np.asarray(image)[..., None], None, decoding)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return over_white(rgba.convert("RGB"), rgba.getchannel("A"))
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001 - Pillow raises any type for damaged EXIF; the pixels are still valid
        return 1


def _prepare_decoders() -> None:
    """Sets process-wide options of Pillow and Python; called per image because other code can reset them.

    The warning filter is not removed, because catch_warnings would restore the state of other threads. Decoders warn
    about damage that they can tolerate, which would flood the log of a large run.
    """
    # Replaced by DecodingConfig.max_image_pixels: Pillow warns at 89 and raises at 179 megapixels.
    Image.MAX_IMAGE_PIXELS = None
    if ("ignore", None, Warning, _DECODERS, 0) not in warnings.filters:
        warnings.filterwarnings("ignore", module=_DECODERS.pattern)
