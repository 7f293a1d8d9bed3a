"""Encoded image bytes to upright RGB pixels, or the reason why not."""

from __future__ import annotations

import hashlib
import io
import re
import warnings

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from maskmill.pipeline.errors import ImageError
from maskmill.pipeline.records import DecodedImage

# Raster formats whose decoders come with every Pillow. No EPS or PDF, which would start other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
MAX_REASON_CHARACTERS = 200
_PILLOW = re.compile(r"PIL\.")

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


def decode_image(data: bytes, max_pixels: int) -> DecodedImage:
    """The picture in a JPEG, PNG, WebP, GIF, BMP, TIFF or PPM/PGM/PBM file. Thread-safe.

    - Several frames or pages: the first one.
    - EXIF orientation is applied; EXIF that cannot be read is taken as upright. Colour profiles are not applied.
    - Transparency (alpha, or a transparent colour or palette entry) is laid over white, as a viewer shows it: the
      colours that hide under it are arbitrary.
    - CMYK is converted by Pillow's formula, JPEGs as Adobe writes them (inverted).
    - 16-bit samples keep their high byte: black stays black and white stays white, and nothing is stretched. A
      transparent level of 16-bit grey is ignored.

    Raises ImageError, with a reason that is the same for the same bytes, where the picture has more than `max_pixels`
    (seen before any pixel is decoded), is truncated or damaged, or has samples without a defined white (signed, 32-bit,
    float).
    """
    if not data:
        raise ImageError("the file is empty")
    _prepare_pillow()
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise ImageError(f"{width} x {height} pixels: the limit is {max_pixels} in all")
            image.load()
            upright = _UPRIGHT.get(_orientation(image))
            rgb = _to_rgb(image)
            pixels = np.array(rgb.transpose(upright) if upright is not None else rgb)
    except ImageError:
        raise
    except UnidentifiedImageError as error:  # its own text has the address of a buffer
        raise ImageError(f"not a readable image of a known format ({', '.join(FORMATS)})") from error
    except Exception as error:  # damaged files make decoders raise anything: OSError, SyntaxError, struct.error...
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"damaged image: {reason}"[:MAX_REASON_CHARACTERS]) from error
    return DecodedImage(pixels, hashlib.sha256(data).hexdigest())


def _to_rgb(image: Image.Image) -> Image.Image:
    # Pillow has no 16-bit grey for PGM, and none for PNG before version 11: such a picture is in mode I, which
    # convert() would clip at 255.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ImageError("signed, 32-bit or float samples have no defined white: convert the image to 8 or 16 bits")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(rgba, mask=rgba)
        return white
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001 - damaged EXIF makes Pillow raise anything, and the pixels are sound
        return 1


def _prepare_pillow() -> None:
    """Sets what Pillow has for the whole process only; again for each image, since other code may have set it back.

    The filter stays in place: catch_warnings would restore other threads' state. Pillow warns of damage that it can
    read past, which is no news to the reader of a log of a million images.
    """
    Image.MAX_IMAGE_PIXELS = None  # `max_pixels` takes its place: this one warns at 89 and refuses at 179 megapixels
    if ("ignore", None, Warning, _PILLOW, 0) not in warnings.filters:
        warnings.filterwarnings("ignore", module=_PILLOW.pattern)
