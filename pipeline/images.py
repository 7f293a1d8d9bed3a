"""Encoded image bytes to upright RGB pixels, or the reason why not."""

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

# Raster formats whose decoders come with every Pillow. No EPS or PDF, which would start other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
MAX_REASON_CHARACTERS = 180  # of what a decoder says
_DECODERS = re.compile(r"(PIL|tifffile)\.")

# They log what they find odd in a file; what matters becomes a failed row.
for _library in ("tifffile", "imagecodecs"):
    logging.getLogger(_library).setLevel(logging.CRITICAL + 1)

# EXIF orientation -> what turns the stored picture upright.
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
    """The picture in a JPEG, PNG, WebP, GIF, BMP, TIFF or PPM/PGM/PBM file. Thread-safe.

    - Several frames or pages: the first one.
    - EXIF (in TIFF: the tag) orientation is applied; one that cannot be read is taken as upright. Colour profiles are
      not applied.
    - Transparency (alpha, or a transparent colour or palette entry) is laid over white, as a viewer shows it: the
      colours that hide under it are arbitrary. Alpha that is zero everywhere is ignored, and so are extra samples of a
      TIFF that are not declared as alpha.
    - CMYK is converted by Pillow's formula, JPEGs as Adobe writes them (inverted).
    - TIFFs with three or four bands show the first three as red, green and blue; more need `decoding.bands`.
    - 16-bit unsigned samples keep their high byte: black stays black and white stays white, and nothing is stretched.
      `decoding.value_range` maps samples of more than 8 bits otherwise; signed, 32-bit and float samples need it.

    Raises ImageError, with a reason that is the same for the same bytes, where the picture has more pixels than
    allowed (seen before any pixel is decoded), is truncated or damaged, or needs a feature that is not supported.
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
    except UnidentifiedImageError as error:  # its own text has the address of a buffer
        raise ImageError(_why_not_identified(data)) from error
    except Exception as error:  # damaged files make decoders raise anything: OSError, SyntaxError, struct.error...
        raise ImageError(f"damaged image: {one_line_cause(error, MAX_REASON_CHARACTERS)}") from error
    return DecodedImage(pixels, hashlib.sha256(data).hexdigest())


def to_pixels(image: Image.Image) -> NDArray[np.uint8]:
    """RGB pixels (H, W, 3) of a Pillow image, by the rules of `decode_image`. ImageError for more than 8 bits."""
    if image.mode == "F" or image.mode.startswith("I"):
        raise ImageError(f"a Pillow image of mode {image.mode} has more than 8 bits per sample; give the path instead")
    return _upright(_to_rgb(image, DEFAULT_DECODING), _orientation(image))


def _upright(picture: Image.Image, orientation: int) -> NDArray[np.uint8]:
    transposition = _UPRIGHT.get(orientation)
    return np.array(picture if transposition is None else picture.transpose(transposition))


def _why_not_identified(data: bytes) -> str:
    """What the plugin that knows the file's first bytes says about it: `Image.open` hides that."""
    for form in FORMATS:
        factory, accept = Image.OPEN[form]
        if accept is not None and accept(data[:16]) is True:
            try:
                factory(io.BytesIO(data), "").close()
            except Exception as error:  # noqa: BLE001 - the same as in decode_image
                if "not identified" not in str(error):  # which names nothing
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
    """A PNG of 16 bits per sample, of which Pillow keeps 8 where there are colours."""
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
    except Exception:  # noqa: BLE001 - damaged EXIF makes Pillow raise anything, and the pixels are sound
        return 1


def _prepare_decoders() -> None:
    """Sets what Pillow and Python have for the whole process only; for each image, since other code may set it back.

    The filter stays in place: catch_warnings would restore other threads' state. Decoders warn of damage that they can
    read past, which is no news to the reader of a log of a million images.
    """
    # DecodingConfig.max_image_pixels takes its place: this one warns at 89 and refuses at 179 megapixels.
    Image.MAX_IMAGE_PIXELS = None
    if ("ignore", None, Warning, _DECODERS, 0) not in warnings.filters:
        warnings.filterwarnings("ignore", module=_DECODERS.pattern)
