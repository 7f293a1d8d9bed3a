"""Pictures of every kind that a source may hold, sound and hostile. All are made here."""

import hashlib
import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from maskmill.pipeline.config import DecodingConfig
from maskmill.pipeline.errors import ImageError
from maskmill.pipeline.images import FORMATS, decode_image
from tests.tiffs import write

LIMIT = 1_000_000
PALETTE = (b"PLTE", bytes([9, 8, 7, 1, 2, 3]))  # two colours, as a chunk of a PNG
RED, GREEN, WHITE, BLACK = [255, 0, 0], [0, 255, 0], [255, 255, 255], [0, 0, 0]


def decode(data: bytes, max_pixels: int = LIMIT) -> NDArray[np.uint8]:
    return decode_image(data, DecodingConfig(max_pixels)).pixels


def save(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png(width: int, height: int, depth: int, colour_type: int, rows: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG of any kind, also those that Pillow does not write. Each row begins with its filter byte."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    body = (struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def noise(width: int = 13, height: int = 9) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


# Sound pictures.


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_give_their_pixels_back(form: str):
    pixels = decode(save(noise(), form))
    np.testing.assert_array_equal(pixels, np.asarray(noise()))
    assert pixels.dtype == np.uint8
    assert pixels.flags.writeable
    assert pixels.flags.c_contiguous


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "GIF"])
def test_lossy_formats_give_their_pixels_back_nearly(form: str):
    smooth = Image.linear_gradient("L").resize((16, 16)).convert("RGB")
    options = {} if form == "GIF" else {"quality": 95}
    assert np.abs(decode(save(smooth, form, **options)).astype(int) - np.asarray(smooth)).max() < 8


def test_sha256_is_of_the_encoded_bytes():
    data = save(noise(), "PNG")
    assert decode_image(data, DecodingConfig(LIMIT)).sha256 == hashlib.sha256(data).hexdigest()


# What each orientation means, EXIF 2.32, 4.6.4: where the first row and the first column of the stored picture belong.
# The upright picture is 3 wide, 2 high, and red in its top left corner only.
RED_CORNER = {1: (0, 0), 2: (0, 2), 3: (1, 2), 4: (1, 0), 5: (0, 0), 6: (2, 0), 7: (2, 1), 8: (0, 1)}


@pytest.mark.parametrize("orientation", RED_CORNER)
@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied(form: str, orientation: int):
    stored = Image.new("RGB", (3, 2) if orientation < 5 else (2, 3))
    row, column = RED_CORNER[orientation]
    stored.putpixel((column, row), (255, 0, 0))
    options = {"lossless": True} if form == "WEBP" else {}
    pixels = decode(save(stored, form, exif=exif(orientation), **options))
    assert pixels.tolist() == [[RED, BLACK, BLACK], [BLACK, BLACK, BLACK]]


def test_exif_orientation_is_applied_when_the_file_is_a_jpeg():
    stored = Image.new("RGB", (32, 64))
    stored.paste("white", (0, 48, 32, 64))  # the bottom: orientation 6 turns it to the left
    pixels = decode(save(stored, "JPEG", exif=exif(6)))
    assert pixels.shape == (32, 64, 3)
    assert pixels[:, :14].min() > 240
    assert pixels[:, 18:].max() < 15


@pytest.mark.parametrize(
    "bad",
    [
        b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12",  # ends within the first entry
        b"Exif\0\0garbage",
        b"Exif\0\0",
        exif(9).tobytes(),  # no such orientation
        exif(0).tobytes(),
    ],
)
def test_picture_is_taken_as_upright_when_its_exif_is_bad(bad: bytes):
    assert decode(save(Image.new("RGB", (32, 16)), "JPEG", exif=bad)).shape == (16, 32, 3)


def test_cmyk_jpeg_is_not_inverted_when_adobe_wrote_it():
    data = save(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")
    assert b"Adobe" in data
    assert np.abs(decode(data).astype(int) - RED).max() < 5


def test_cmyk_tiff_is_converted():
    assert decode(save(Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "TIFF")).tolist() == [[RED]]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(png(3, 1, 1, 0, b"\0\x40"), [BLACK, WHITE, BLACK], id="1 bit"),
        pytest.param(png(2, 1, 4, 0, b"\0\x1f"), [[17] * 3, WHITE], id="4 bits"),
        pytest.param(png(2, 1, 8, 0, b"\0\x01\xff"), [[1] * 3, WHITE], id="grey"),
        pytest.param(png(2, 1, 8, 3, b"\0\0\1", PALETTE), [[9, 8, 7], [1, 2, 3]], id="palette"),
        pytest.param(b"P4 2 1\n\x80", [BLACK, WHITE], id="pbm"),
        pytest.param(b"P2 2 1 255\n7 255\n", [[7] * 3, WHITE], id="pgm as text"),
        pytest.param(save(Image.new("1", (1, 1), 1), "TIFF", compression="group4"), [WHITE], id="fax"),
        pytest.param(save(Image.new("RGBX", (1, 1), (1, 2, 3, 4)), "TIFF"), [[1, 2, 3]], id="RGBX"),
    ],
)  # fmt: skip
def test_grey_palette_and_few_bits_become_rgb(data: bytes, expected: list[list[int]]):
    assert decode(data).tolist() == [expected]


def half_clear(mode: str) -> Image.Image:
    """Black; of its two pixels the first is transparent."""
    image = Image.new(mode, (2, 1))
    image.putalpha(Image.frombytes("L", (2, 1), b"\0\xff"))
    return image


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(png(2, 1, 8, 6, b"\0\1\2\3\0\1\2\3\xff"), [WHITE, [1, 2, 3]], id="alpha"),
        pytest.param(png(1, 1, 8, 6, b"\0\0\0\0\x80"), [[127] * 3], id="half"),
        pytest.param(png(2, 1, 8, 4, b"\0\1\0\1\xff"), [WHITE, [1] * 3], id="grey and alpha"),
        pytest.param(png(2, 1, 8, 3, b"\0\0\1", PALETTE, (b"tRNS", b"\0")), [WHITE, [1, 2, 3]], id="palette entry"),
        pytest.param(png(2, 1, 8, 2, b"\0\1\2\3\4\5\6", (b"tRNS", b"\0\1\0\2\0\3")), [WHITE, [4, 5, 6]], id="colour"),
        pytest.param(png(2, 1, 8, 0, b"\0\1\2", (b"tRNS", b"\0\1")), [WHITE, [2] * 3], id="grey level"),
        pytest.param(png(2, 1, 16, 6, b"\0" + struct.pack(">8H", *[0x1234] * 3, 0, *[0x1234] * 3, 0xFFFF)),
                     [WHITE, [0x12] * 3], id="16 bits"),
        pytest.param(save(half_clear("RGBA"), "WEBP", lossless=True), [WHITE, BLACK], id="webp"),
        pytest.param(save(half_clear("LA"), "TIFF"), [WHITE, BLACK], id="tiff"),
        pytest.param(save(half_clear("LA").getchannel("A"), "GIF", transparency=0), [WHITE, WHITE], id="gif"),
    ],
)  # fmt: skip
def test_transparency_lies_over_white(data: bytes, expected: list[list[int]]):
    assert decode(data).tolist() == [expected]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(png(1, 1, 8, 6, b"\0\1\2\3\0"), id="png"),
        pytest.param(png(1, 1, 16, 6, b"\0" + bytes([1, 0, 2, 0, 3, 0, 0, 0])), id="16-bit png"),
        pytest.param(png(1, 1, 8, 3, b"\0\0", (b"PLTE", b"\1\2\3"), (b"tRNS", b"\0")), id="palette"),
        pytest.param(save(Image.new("RGBA", (1, 1), (1, 2, 3, 0)), "WEBP", lossless=True, exact=True), id="webp"),
    ],
)
def test_alpha_is_ignored_when_it_is_zero_everywhere(data: bytes):
    assert decode(data).tolist() == [[[1, 2, 3]]]


def test_opaque_alpha_changes_no_pixel():
    opaque = noise()
    opaque.putalpha(255)
    np.testing.assert_array_equal(decode(save(opaque, "PNG")), np.asarray(noise()))


LEVELS = np.array([[0, 255, 256, 0x1234, 40_000, 65_535]], np.uint16)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(png(6, 1, 16, 0, b"\0" + LEVELS.astype(">u2").tobytes()), id="png"),
        pytest.param(png(6, 1, 16, 2, b"\0" + LEVELS.astype(">u2").repeat(3).tobytes()), id="rgb png"),
        pytest.param(b"P5 6 1 65535\n" + LEVELS.astype(">u2").tobytes(), id="pgm"),
        pytest.param(b"P6 6 1 65535\n" + LEVELS.astype(">u2").repeat(3).tobytes(), id="ppm"),
        pytest.param(b"P2 6 1 65535\n0 255 256\n4660 40000 65535\n", id="pgm as text"),
        pytest.param(save(Image.fromarray(LEVELS), "TIFF"), id="tiff"),
        pytest.param(save(Image.fromarray(LEVELS.astype(">u2")), "TIFF"), id="big-endian tiff"),
    ],
)
def test_16_bit_samples_keep_their_high_byte(data: bytes):
    assert decode(data).tolist() == [[[level] * 3 for level in (0, 0, 1, 0x12, 156, 255)]]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(save(Image.new("F", (2, 2), 0.5), "TIFF"), id="float tiff"),
        pytest.param(save(Image.new("I", (2, 2), 70_000), "TIFF"), id="32-bit tiff"),
        pytest.param(b"Pf\n1 1\n-1.0\n" + struct.pack("<f", 1), id="pfm"),
    ],
)
def test_samples_without_a_defined_white_are_refused(data: bytes):
    with pytest.raises(ImageError, match="no defined white"):
        decode(data)


def solid(colour: list[int]) -> Image.Image:
    return Image.new("RGB", (16, 16), tuple(colour))


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_first_frame_is_taken_when_there_are_several(form: str):
    options = {"lossless": True} if form == "WEBP" else {}
    data = save(solid(RED), form, save_all=True, append_images=[solid(GREEN)], **options)
    assert len(data) > len(save(solid(RED), form, **options))
    assert np.abs(decode(data).astype(int) - RED).max() < 3


# Hostile ones.


@pytest.mark.parametrize(
    "data",
    [
        b"hello",
        b"<html></html>" * 100,
        bytes(1000),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
        b"%PDF-1.7\n",
        b"\0\0\1\0" + bytes(100),  # ico
        png(0, 5, 8, 0, b""),
    ],
)
def test_what_is_no_image_is_refused_without_addresses_in_the_reason(data: bytes):
    with pytest.raises(ImageError) as caught:
        decode(data)
    assert str(caught.value) == f"not a readable image of a known format ({', '.join(FORMATS)})"


def test_formats_that_are_not_listed_are_refused():
    for form in ("ICO", "TGA", "PCX", "JPEG2000", "EPS"):
        with pytest.raises(ImageError):
            decode(save(noise(16, 16), form))


def test_empty_file_is_refused():
    with pytest.raises(ImageError, match="the file is empty"):
        decode(b"")


@pytest.mark.parametrize(("width", "height", "fits"), [(10, 10, True), (101, 1, False), (10, 11, False)])
def test_pixel_limit_counts_width_times_height(width: int, height: int, fits: bool):
    data = save(noise(width, height), "PNG")
    if fits:
        assert decode(data, 100).shape == (height, width, 3)
        return
    with pytest.raises(ImageError, match=f"{width} x {height} pixels: the limit is 100 in all"):
        decode(data, 100)


def test_pixel_limit_is_checked_before_pixels_are_decoded():
    with pytest.raises(ImageError, match="100000 x 100000 pixels: the limit is"):
        decode(png(100_000, 100_000, 8, 2, b"no pixels at all"))


def test_pixel_limit_is_ours_when_it_is_above_that_of_pillow():
    # The header claims 225 megapixels; Pillow alone would refuse them.
    with pytest.raises(ImageError, match="truncated"):
        decode(png(15_000, 15_000, 8, 0, b"\0"), max_pixels=10**9)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_truncated_file_is_refused(form: str):
    data = save(noise(64, 64), form)
    for kept in (len(data) // 8, len(data) // 2, len(data) * 7 // 8):
        with pytest.raises(ImageError):
            decode(data[:kept])


def test_reason_is_the_same_when_the_bytes_are_the_same():
    data = save(noise(), "JPEG")[:100]
    reasons: set[str] = set()
    for _ in range(3):
        with pytest.raises(ImageError) as caught:
            decode(data)
        reasons.add(str(caught.value))
    assert len(reasons) == 1


def test_warnings_of_pillow_do_not_leak_when_threads_decode_at_once():
    damaged = save(noise(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12")
    with warnings.catch_warnings(record=True) as caught, ThreadPoolExecutor(4) as threads:
        warnings.simplefilter("always")
        with Image.open(io.BytesIO(damaged)) as image:
            image.getexif()
        assert "Corrupt EXIF data" in str(caught[0].message)
        caught.clear()
        for future in [threads.submit(decode, damaged) for _ in range(100)]:
            future.result()
        assert caught == []


@pytest.mark.parametrize(
    "odd",
    [
        png(1, 1, 16, 0, bytes(3), (b"iCCP", b"a\0\0" + zlib.compress(b"no profile"))),
        write(np.zeros((1, 1, 1), np.uint8), extratags=[(42113, "s", 0, "no number", True)]),
    ],
)
def test_nothing_is_logged_when_a_decoder_finds_something_odd(odd: bytes, caplog: pytest.LogCaptureFixture):
    assert decode(odd).tolist() == [[BLACK]]
    assert caplog.records == []


SOUND = [
    *(save(noise(), form, exif=exif(6)) for form in ("JPEG", "PNG", "WEBP", "TIFF")),
    *(save(noise(), form) for form in ("GIF", "BMP", "PPM")),
    save(noise(), "JPEG", progressive=True),
    save(noise().convert("CMYK"), "JPEG"),
    save(noise().convert("P"), "PNG", transparency=3),
    save(Image.fromarray(LEVELS), "PNG"),
    save(noise(), "WEBP", save_all=True, append_images=[noise().rotate(90)]),
    save(noise(), "GIF", save_all=True, append_images=[noise().rotate(90)]),
    save(noise(), "PNG", save_all=True, append_images=[noise().rotate(90)]),
    *(save(noise(), "TIFF", compression=name) for name in ("tiff_lzw", "jpeg", "tiff_deflate", "packbits")),
    save(noise().convert("1"), "TIFF", compression="group4"),
    b"P3 2 2 255\n" + b"1 2 3 " * 4,
]


def decodes_or_is_refused(data: bytes) -> None:
    try:
        pixels = decode(data)
    except ImageError as error:
        reason = str(error)
    else:
        reason = ""
        assert (pixels.dtype, pixels.ndim, pixels.shape[2]) == (np.uint8, 3, 3)
        assert pixels.size > 0
    assert "\n" not in reason
    assert " at 0x" not in reason
    assert len(reason) <= 200


@settings(deadline=None)
@given(sound=st.sampled_from(SOUND), data=st.data())
def test_damaged_file_decodes_or_is_refused(sound: bytes, data: st.DataObject):
    damaged = bytearray(sound[: data.draw(st.integers(0, len(sound)), label="kept")])
    if damaged:
        for position in data.draw(st.lists(st.integers(0, len(damaged) - 1), max_size=5)):
            damaged[position] ^= 1 << data.draw(st.integers(0, 7))
    decodes_or_is_refused(bytes(damaged))


@settings(deadline=None)
@given(head=st.sampled_from([sound[:16] for sound in SOUND] + [b""]), tail=st.binary(max_size=300))
def test_random_bytes_decode_or_are_refused(head: bytes, tail: bytes):
    decodes_or_is_refused(head + tail)
