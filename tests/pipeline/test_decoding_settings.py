"""`--bands`, `--value-range` and `--max-image-pixels`: what they do to pixels."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from maskmill.pipeline.config import DecodingConfig, ValueRange, parse_bands
from maskmill.pipeline.errors import ConfigError, ImageError
from maskmill.pipeline.images import decode_image
from tests.pipeline.test_images import png
from tests.tiffs import assemble, noise, write

LEVELS = np.array([[[0], [1000], [2000], [3000], [4000], [65_535]]], np.uint16)
STRETCHED = [0, 0, 64, 128, 191, 255]  # by ValueRange(1000, 5000)


def decode(data: bytes, **settings: object) -> np.ndarray:
    return decode_image(data, DecodingConfig(**settings)).pixels  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("photometric", ["minisblack", "rgb"])
def test_bands_are_red_green_and_blue_when_they_are_named(planar: bool, photometric: str):
    values = noise(7, 16)
    data = write(values, planar, photometric=photometric, tile=(16, 16), compression="lzw")
    np.testing.assert_array_equal(decode(data, bands=(7, 2, 2)), values[..., [6, 1, 1]] >> 8)


def test_bands_are_counted_in_the_reason_when_none_are_named_or_one_is_missing():
    data = write(noise(7, 8), photometric="minisblack")
    with pytest.raises(ImageError, match=r"7 bands: choose .* with --bands R,G,B"):
        decode(data)
    with pytest.raises(ImageError, match="7 bands: band 8 of --bands does not exist"):
        decode(data, bands=(8, 1, 1))


def test_bands_do_not_apply_when_there_is_one_or_the_format_has_none():
    gray = write(noise(1, 8), photometric="minisblack")
    np.testing.assert_array_equal(decode(gray, bands=(3, 2, 1)), noise(1, 8).repeat(3, axis=2))
    buffer = io.BytesIO()
    Image.fromarray(noise(3, 8)).save(buffer, "PNG")
    np.testing.assert_array_equal(decode(buffer.getvalue(), bands=(3, 2, 1)), noise(3, 8))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(write(LEVELS, photometric="minisblack"), id="tiff"),
        pytest.param(write(LEVELS.repeat(3, axis=2), True, photometric="rgb"), id="planar tiff"),
        pytest.param(write(LEVELS.astype(np.int32), photometric="minisblack"), id="signed tiff"),
        pytest.param(write(LEVELS.astype(np.float64), photometric="minisblack"), id="float tiff"),
        pytest.param(png(6, 1, 16, 0, b"\0" + LEVELS.astype(">u2").tobytes()), id="png"),
        pytest.param(png(6, 1, 16, 2, b"\0" + LEVELS.astype(">u2").repeat(3).tobytes()), id="rgb png"),
        pytest.param(b"P5 6 1 65535\n" + LEVELS.astype(">u2").tobytes(), id="pgm"),
        pytest.param(b"P6 6 1 65535\n" + LEVELS.astype(">u2").repeat(3).tobytes(), id="ppm"),
        pytest.param(b"P2 6 1 65535\n" + b" ".join(b"%d" % value for value in LEVELS.ravel()), id="pgm as text"),
        pytest.param(b"Pf 6 1 -1\n" + LEVELS.astype("<f4").tobytes(), id="pfm"),
    ],
)
def test_value_range_is_stretched_to_8_bits_when_samples_are_deeper(data: bytes):
    pixels = decode(data, value_range=ValueRange(1000, 5000))
    assert pixels.tolist() == [[[level] * 3 for level in STRETCHED]]


def test_value_range_is_inverted_when_white_is_zero():
    pixels = decode(write(LEVELS, photometric="miniswhite"), value_range=ValueRange(1000, 5000))
    assert pixels[0, :, 0].tolist() == [255 - level for level in STRETCHED]


def test_value_range_does_not_apply_when_samples_have_8_bits():
    np.testing.assert_array_equal(
        decode(write(noise(3, 8), photometric="rgb"), value_range=ValueRange(0, 9)), noise(3, 8)
    )


def test_percentiles_are_taken_of_each_band_of_each_image():
    ramp = np.arange(101, dtype=np.float32)[None, :, None]
    data = write(np.concatenate([ramp, 1000 + 10 * ramp, -ramp], axis=2), photometric="rgb")
    pixels = decode(data, value_range=ValueRange(10, 90, percentiles=True))
    expected = np.clip(np.floor((np.arange(101) - 10) / 80 * 255 + 0.5), 0, 255)
    np.testing.assert_array_equal(pixels[0, :, 0], expected)
    np.testing.assert_array_equal(pixels[0, :, 1], expected)
    np.testing.assert_array_equal(pixels[0, ::-1, 2], expected)


def test_float_is_black_when_it_is_not_a_number_and_saturates_when_infinite():
    values = np.array([[[np.nan], [-np.inf], [np.inf], [0.0], [0.5], [1.0]]], np.float32)
    for value_range in (ValueRange(0, 1), ValueRange(0, 100, percentiles=True)):
        pixels = decode(write(values, photometric="minisblack"), value_range=value_range)
        assert pixels[0, :, 0].tolist() == [0, 0, 255, 0, 128, 255]


def test_no_data_is_black_and_outside_the_percentiles_when_gdal_declares_it():
    values = np.array([[[-9999], [-9999], [10], [15], [20]]], np.float32)
    data = write(values, photometric="minisblack", extratags=[(42113, "s", 0, "-9999", True)])
    pixels = decode(data, value_range=ValueRange(0, 100, percentiles=True))
    assert pixels[0, :, 0].tolist() == [0, 0, 0, 128, 255]


def test_image_is_black_when_all_its_samples_are_equal_or_missing():
    for value in (7.0, np.nan):
        data = write(np.full((3, 4, 1), value, np.float32), photometric="minisblack")
        assert not decode(data, value_range=ValueRange(2, 98, percentiles=True)).any()


def test_alpha_keeps_its_own_range_when_a_value_range_is_given():
    values = np.array([[[1000, 0], [5000, 65_535], [5000, 0]]], np.uint16)
    data = assemble(values.tobytes(), values, 16, 1, t338=(2,))
    assert decode(data, value_range=ValueRange(1000, 5000))[0, :, 0].tolist() == [255, 255, 255]
    assert decode(data, value_range=ValueRange(1000, 9000))[0, :, 0].tolist() == [255, 128, 255]


def test_pixel_limit_is_raised_when_it_is_configured():
    for data in (write(noise(1, 16)), png(37, 19, 8, 0, (b"\0" + bytes(37)) * 19), b"P5 37 19 999\n" + bytes(2 * 703)):
        assert decode(data, max_image_pixels=703).shape == (19, 37, 3)
        with pytest.raises(ImageError, match=r"37 x 19 pixels: the limit is 702 in all \(--max-image-pixels\)"):
            decode(data, max_image_pixels=702)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0,4095", ValueRange(0, 4095)),
        ("-1.5, 2e3", ValueRange(-1.5, 2000)),
        ("2%,98%", ValueRange(2, 98, percentiles=True)),
    ],
)
def test_value_range_is_read(text: str, expected: ValueRange):
    assert ValueRange.parse(text) == expected


@pytest.mark.parametrize(
    "text", ["", "5", "9,3", "1,1", "a,b", "0,98%", "2%,101%", "-1%,50%", "1.2.3,4", "0,1e999", "1,2,3"]
)
def test_value_range_is_refused_when_it_makes_no_sense(text: str):
    with pytest.raises(ConfigError, match="value range"):
        ValueRange.parse(text)


def test_bands_are_read_or_refused():
    assert parse_bands("4, 3,2") == (4, 3, 2)
    for text in ("", "1,2", "0,1,2", "1,2,3,4", "r,g,b", "-1,2,3"):
        with pytest.raises(ConfigError, match="are no bands"):
            parse_bands(text)


def test_rows_of_a_pfm_go_from_the_bottom_to_the_top():
    data = b"Pf\n1 2\n1.0\n" + struct.pack(">ff", 0, 1)
    assert decode(data, value_range=ValueRange(0, 1))[:, 0, 0].tolist() == [255, 0]
