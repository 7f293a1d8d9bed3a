"""JPEG, PNG, WebP, GIF, BMP and PNM of every kind, pixel by pixel against a second decoder or what was written."""

import io
import struct
from typing import Any

import cv2
import imagecodecs
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from maskmill.pipeline.config import DEFAULT_DECODING
from maskmill.pipeline.errors import ImageError
from maskmill.pipeline.images import decode_image
from tests.pipeline.test_images import png
from tests.tiffs import HEIGHT, WIDTH, Written, noise, packed

SMOOTH = np.asarray(Image.fromarray(noise(3, 8)).resize((200, 150), Image.Resampling.BICUBIC))
PALETTE = np.random.default_rng(1).integers(0, 256, (256, 3)).astype(np.uint8)


def decode(data: bytes | bytearray) -> NDArray[np.uint8]:
    return decode_image(bytes(data), DEFAULT_DECODING).pixels


def decode_with_opencv(data: bytes) -> NDArray[Any]:
    return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB), np.uint8)


def save(pixels: NDArray[Any] | Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(buffer, form, **options)
    return buffer.getvalue()


def over_white(colours_HW3: NDArray[Any], alpha_HW1: NDArray[Any]) -> NDArray[Any]:
    colours, alpha = colours_HW3.astype(np.float64), alpha_HW1.astype(np.float64)
    return np.floor((colours * alpha + 255 * (255 - alpha)) / 255 + 0.5)


@pytest.mark.parametrize(
    "data",
    [
        *(pytest.param(save(SMOOTH, "JPEG", subsampling=kind), id=kind) for kind in ("4:4:4", "4:2:2", "4:2:0")),
        *(pytest.param(imagecodecs.jpeg8_encode(SMOOTH, subsampling=kind), id=kind) for kind in ("411", "440")),
        pytest.param(save(SMOOTH, "JPEG", progressive=True), id="progressive"),
        pytest.param(save(SMOOTH, "JPEG", keep_rgb=True), id="rgb"),
        pytest.param(save(SMOOTH[..., 0], "JPEG"), id="grey"),
        pytest.param(save(SMOOTH, "JPEG", restart_marker_blocks=3), id="restart markers"),
        pytest.param(save(SMOOTH, "WEBP", quality=90), id="webp"),
        pytest.param(save(SMOOTH, "GIF"), id="gif"),
    ],
)
def test_pixels_are_those_of_opencv(data: bytes):
    np.testing.assert_array_equal(decode(data), decode_with_opencv(data))


def test_cmyk_jpeg_is_inverted_when_its_inks_are_stored_as_cmyk_or_ycck():
    inks = np.asarray(Image.fromarray(SMOOTH).convert("CMYK"))
    for stored in ("CMYK", "YCCK"):
        data = imagecodecs.jpeg8_encode(255 - inks, 100, colorspace="CMYK", outcolorspace=stored, subsampling="444")
        again = 255 - imagecodecs.jpeg8_decode(data, outcolorspace="CMYK")
        np.testing.assert_array_equal(decode(data), np.asarray(Image.fromarray(again, "CMYK").convert("RGB")))
        assert np.abs(decode(data).astype(int) - SMOOTH).mean() < 5


def test_reason_names_the_feature_when_a_jpeg_has_12_bits():
    data = imagecodecs.jpeg_encode(SMOOTH.astype(np.uint16) << 4, bitspersample=12)
    with pytest.raises(ImageError, match="JPEG: cannot handle 12-bit layers"):
        decode(data)


# PNG: all depths and colour types of its specification.


@pytest.mark.parametrize(
    ("colour_type", "depth"),
    [*((0, depth) for depth in (1, 2, 4, 8, 16)), *((kind, depth) for kind in (2, 4, 6) for depth in (8, 16))],
)
def test_png_is_decoded_as_it_was_written(colour_type: int, depth: int):
    samples = noise({0: 1, 2: 3, 4: 2, 6: 4}[colour_type], depth)
    rows = np.frombuffer(packed(samples, depth), np.uint8).reshape(HEIGHT, -1)
    filtered = np.pad(rows, ((0, 0), (1, 0))).tobytes()
    colours = Written("", b"", samples[..., : 3 if colour_type in (2, 6) else 1], depth).pixels
    if colour_type in (4, 6):
        colours = over_white(colours, samples[..., -1:] >> (depth - 8))
    np.testing.assert_array_equal(decode(png(WIDTH, HEIGHT, depth, colour_type, filtered)), colours)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_png_is_decoded_when_it_has_a_palette(depth: int):
    indices = noise(1, depth)
    rows = np.frombuffer(packed(indices, depth), np.uint8).reshape(HEIGHT, -1)
    data = png(WIDTH, HEIGHT, depth, 3, np.pad(rows, ((0, 0), (1, 0))).tobytes(), (b"PLTE", PALETTE.tobytes()))
    np.testing.assert_array_equal(decode(data), PALETTE[indices[..., 0]])


@pytest.mark.parametrize("bits", [8, 16])
def test_png_is_decoded_when_it_is_interlaced(bits: int):
    """Adam7: seven reduced pictures, each with its rows."""
    samples = noise(3, bits)
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = b"".join(
        b"\0" + packed(row[None], bits) for y, x, dy, dx in passes for row in samples[y::dy, x::dx] if row.size
    )
    plain = png(WIDTH, HEIGHT, bits, 2, rows)
    header = plain[12:28] + b"\1"
    data = plain[:12] + header + struct.pack(">I", imagecodecs.zlib_crc32(header)) + plain[33:]
    np.testing.assert_array_equal(decode(data), samples >> (bits - 8))


def test_colour_that_is_transparent_lies_over_white_when_a_png_has_16_bits():
    rows = b"\0" + struct.pack(">6H", 0x0102, 3, 4, 0x0103, 3, 4)
    data = png(2, 1, 16, 2, rows, (b"tRNS", struct.pack(">3H", 0x0102, 3, 4)))
    assert decode(data).tolist() == [[[255, 255, 255], [1, 0, 0]]]


def test_png_of_16_bits_is_refused_when_it_is_truncated():
    data = imagecodecs.png_encode(noise(3, 16))
    with pytest.raises(ImageError, match="damaged"):
        decode(data[: len(data) // 2])


# BMP.


def bmp(rows: NDArray[np.uint8] | bytes, bits: int, compression: int = 0, masks: bytes = b"", **more: Any) -> bytes:
    """A BMP of WIDTH x HEIGHT; `rows` (H, bytes) from the top, or compressed data. more: palette, header, top_down."""
    palette = b"".join(bytes([*colour[::-1], 0]) for colour in PALETTE[: 2**bits]) if bits <= 8 else b""
    header_size, top_down = more.get("header", 40), more.get("top_down", False)
    if not isinstance(rows, bytes):
        rows = np.pad(rows if top_down else rows[::-1], ((0, 0), (0, -rows.shape[1] % 4))).tobytes()
    height = -HEIGHT if top_down else HEIGHT
    header = struct.pack(
        "<IiiHHIIiiII", header_size, WIDTH, height, 1, bits, compression, len(rows), 0, 0, len(palette) // 4, 0
    )
    header = (header + masks).ljust(header_size, b"\0")
    start = 14 + len(header) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(rows), 0, 0, start) + header + palette + rows


@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("top_down", [False, True])
def test_bmp_is_decoded_when_it_has_a_palette(bits: int, top_down: bool):
    indices = noise(1, bits)
    rows = np.frombuffer(packed(indices, bits), np.uint8).reshape(HEIGHT, -1)
    np.testing.assert_array_equal(decode(bmp(rows, bits, top_down=top_down)), PALETTE[indices[..., 0]])


@pytest.mark.parametrize(
    ("fields", "masks"),
    [(((10, 31), (5, 31), (0, 31)), b""), (((11, 31), (5, 63), (0, 31)), struct.pack("<III", 0xF800, 0x7E0, 0x1F))],
)
def test_bmp_is_decoded_when_it_has_16_bits(fields: tuple[tuple[int, int], ...], masks: bytes):
    values = noise(1, 16)[..., 0]
    rows = np.ascontiguousarray(values.astype("<u2")).view(np.uint8)
    expected = np.stack([(values >> shift & most).astype(int) * 255 // most for shift, most in fields], axis=2)
    np.testing.assert_array_equal(decode(bmp(rows, 16, 3 if masks else 0, masks)), expected)


MASKS = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)


@pytest.mark.parametrize("header", [40, 108, 124])
@pytest.mark.parametrize("unused", [False, True])
def test_bmp_is_decoded_when_it_has_32_bits(header: int, unused: bool):
    samples = noise(4, 8)
    samples[..., 3] *= not unused
    rows = samples[..., [2, 1, 0, 3]].reshape(HEIGHT, -1)
    data = bmp(rows, 32) if header == 40 else bmp(rows, 32, 3, MASKS, header=header)
    opaque = header == 40 or unused
    expected = samples[..., :3] if opaque else over_white(samples[..., :3], samples[..., 3:])
    np.testing.assert_array_equal(decode(data), expected)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("literal", [False, True])
def test_bmp_is_decoded_when_it_is_run_length_encoded(bits: int, literal: bool):
    indices = noise(1, bits)
    data = b""
    for row in indices[::-1]:
        if literal:
            values = packed(row[None], bits)
            data += bytes([0, WIDTH]) + values + bytes(len(values) % 2)
        else:
            data += b"".join(bytes([1, int(value) << (8 - bits)]) for value in row[:, 0])
        data += b"\0\0"
    np.testing.assert_array_equal(decode(bmp(data + b"\0\1", bits, 1 if bits == 8 else 2)), PALETTE[indices[..., 0]])


def test_reason_names_the_feature_when_the_masks_of_a_bmp_are_unusual():
    rows = np.zeros((HEIGHT, 4 * WIDTH), np.uint8)
    with pytest.raises(ImageError, match="BMP bitfields layout"):
        decode(bmp(rows, 32, 3, struct.pack("<III", 0x3FF00000, 0xFFC00, 0x3FF), header=56))


# WebP, GIF, PNM.


def test_alpha_of_a_webp_lies_over_white():
    samples = noise(4, 8)
    data = save(samples, "WEBP", lossless=True, exact=True)
    np.testing.assert_array_equal(decode(data), over_white(samples[..., :3], samples[..., 3:]))


@pytest.mark.parametrize("interlace", [0, 1])
def test_gif_is_decoded_as_it_was_written(interlace: int):
    image = Image.fromarray(noise(1, 8)[..., 0])
    image.putpalette(PALETTE.tobytes())
    np.testing.assert_array_equal(decode(save(image, "GIF", interlace=interlace)), PALETTE[noise(1, 8)[..., 0]])


@pytest.mark.parametrize("white", [1, 7, 100, 255, 1000, 4095, 65_535])
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("plain", [False, True])
def test_pnm_is_spread_over_8_bits_when_its_white_is_any_number(white: int, samples: int, plain: bool):
    values = noise(samples, 16).astype(int) % (white + 1)
    kind = {(1, False): 5, (3, False): 6, (1, True): 2, (3, True): 3}[samples, plain]
    header = b"P%d\n# a comment\n%d %d\n%d\n" % (kind, WIDTH, HEIGHT, white)
    text = b"\n".join(b"%d" % value for value in values.ravel())
    data = header + (text if plain else values.astype(np.uint8 if white < 256 else ">u2").tobytes())
    high_byte = white > 255 and (white & (white + 1)) == 0
    expected = values >> (white.bit_length() - 8) if high_byte else values * 255 / white
    assert np.abs(decode(data) - expected).max() <= (0 if high_byte else 0.5)


@pytest.mark.parametrize(("plain", "kind"), [(False, 4), (True, 1)])
def test_pbm_is_decoded_as_it_was_written(plain: bool, kind: int):
    values = noise(1, 1)
    rows = b" ".join(b"%d" % value for value in values.ravel()) if plain else packed(values, 1)
    data = b"P%d\n%d %d\n" % (kind, WIDTH, HEIGHT) + rows
    np.testing.assert_array_equal(decode(data), np.broadcast_to(255 - 255 * values, (HEIGHT, WIDTH, 3)))


@pytest.mark.parametrize(
    "data",
    [b"P5 9 9 65535\n" + bytes(161), b"P2 2 1 999\n1", b"P2 1 1 999\n1000", b"P2 1 1 999\nx", b"P5 0 0 999\n"],
)
def test_deep_pnm_is_refused_when_samples_are_missing_or_wrong(data: bytes):
    with pytest.raises(ImageError, match=r"truncated|damaged"):
        decode(data)
