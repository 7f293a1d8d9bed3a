"""TIFFs of every kind, pixel by pixel against what was written into them and against a second decoder."""

import io
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
import pytest
import skimage.color
import tifffile
from numpy.typing import NDArray
from PIL import Image

from maskmill.pipeline.config import DecodingConfig
from maskmill.pipeline.errors import ImageError
from maskmill.pipeline.images import decode_image
from tests import tiffs
from tests.tiffs import HEIGHT, WIDTH, Written, assemble, noise, packed, write

LIMIT = 1_000_000
SMOOTH = np.asarray(Image.fromarray(noise(3, 8)).resize((200, 150), Image.Resampling.BICUBIC))
PALETTE = np.random.default_rng(1).integers(0, 65_536, (3, 256)).astype(np.uint16)


def decode(data: bytes, decoding: DecodingConfig = DecodingConfig(LIMIT)) -> NDArray[np.uint8]:  # noqa: B008
    return decode_image(data, decoding).pixels


def decode_with_pillow(data: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def save(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "TIFF", **options)
    return buffer.getvalue()


def over_white(colours_HW3: NDArray[Any], alpha_HW1: NDArray[Any]) -> NDArray[Any]:
    colours, alpha = colours_HW3.astype(np.float64), alpha_HW1.astype(np.float64)
    return np.floor((colours * alpha + 255 * (255 - alpha)) / 255 + 0.5)


@pytest.mark.parametrize("files", [tiffs.gray, tiffs.rgb, tiffs.depths])
def test_samples_are_what_was_written_when_storage_differs(files: Callable[[], Iterator[Written]]):
    names = {file.name: np.array_equal(decode(file.data), file.pixels) for file in files()}
    assert [name for name, equal in names.items() if not equal] == []
    assert len(names) >= 90


@pytest.mark.parametrize("order", "<>")
def test_min_is_white_is_inverted_when_samples_have_16_bits(order: str):
    values = np.array([[[0], [0x1234], [0xFFFF]]], np.uint16)
    data = write(values, photometric="miniswhite", byteorder=order)
    assert decode(data)[0, :, 0].tolist() == [255, 0xFF - 0x12, 0]


@pytest.mark.parametrize("layout", [{}, {"rowsperstrip": 5}, {"tile": (16, 32)}])
def test_planar_rgb_keeps_its_planes_when_it_is_uncompressed(layout: dict[str, Any]):
    data = write(noise(3, 16), planar=True, photometric="rgb", **layout)
    np.testing.assert_array_equal(decode(data), noise(3, 16) >> 8)


@pytest.mark.parametrize("compression", [None, "packbits", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "zstd"])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB"])
def test_pixels_are_those_of_libtiff_when_pillow_wrote_the_file(compression: str | None, mode: str):
    data = save(Image.fromarray(SMOOTH).convert(mode), **({"compression": compression} if compression else {}))
    difference = np.abs(decode(data).astype(int) - decode_with_pillow(data)).max()
    assert difference <= (1 if mode == "YCbCr" else 0)  # libtiff rounds this conversion in another way


@pytest.mark.parametrize("compression", ["tiff_ccitt", "group3", "group4"])
def test_fax_is_decoded_as_by_libtiff(compression: str):
    data = save(Image.fromarray(SMOOTH).convert("1"), compression=compression)
    np.testing.assert_array_equal(decode(data), decode_with_pillow(data))


@pytest.mark.parametrize("subsampling", [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("layout", [{}, {"rowsperstrip": 16}, {"tile": (64, 64)}])
def test_jpeg_is_decoded_as_by_libtiff_when_chroma_is_subsampled(subsampling: tuple[int, int], layout: dict[str, Any]):
    data = write(SMOOTH, photometric="ycbcr", compression="jpeg", subsampling=subsampling, **layout)
    np.testing.assert_array_equal(decode(data), decode_with_pillow(data))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBX", "CMYK", "YCbCr"])
def test_jpeg_is_decoded_as_by_libtiff_when_pillow_wrote_it(mode: str):
    data = save(Image.fromarray(SMOOTH).convert(mode), compression="jpeg")
    np.testing.assert_array_equal(decode(data), decode_with_pillow(data))


@pytest.mark.parametrize("layout", [{}, {"tile": (16, 32)}])
def test_webp_is_decoded(layout: dict[str, Any]):
    data = write(noise(3, 8), photometric="rgb", compression="webp", compressionargs={"lossless": True}, **layout)
    np.testing.assert_array_equal(decode(data), noise(3, 8))


def test_samples_are_those_of_opencv_when_it_wrote_16_bits():
    bgr = noise(3, 16)
    data = cv2.imencode(".tiff", bgr)[1].tobytes()
    again = np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED), np.uint16)
    np.testing.assert_array_equal(decode(data), again[..., ::-1] >> 8)


def test_packed_samples_are_decoded_when_they_are_compressed():
    for bits in (1, 2, 4, 12):
        values = noise(1, bits)
        file = Written("", assemble(zlib.compress(packed(values, bits)), values, bits, 1, t259=(8,)), values, bits)
        np.testing.assert_array_equal(decode(file.data), file.pixels)


def test_bits_of_a_byte_are_reversed_when_the_fill_order_says_so():
    reverse = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
    for bits in (1, 4, 8):
        values = noise(1, bits)
        data = assemble(packed(values, bits).translate(reverse), values, bits, 1, t266=(2,))
        np.testing.assert_array_equal(decode(data), Written("", data, values, bits).pixels)


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("bits", [8, 16])
def test_cmyk_is_converted_by_the_formula_of_pillow(planar: bool, bits: int):
    inks = noise(4, 8)
    expected = np.asarray(Image.fromarray(inks, "CMYK").convert("RGB"))
    stored = inks if bits == 8 else inks.astype(np.uint16) * 257
    np.testing.assert_array_equal(decode(write(stored, planar, photometric="separated")), expected)


def test_cielab_is_converted_as_by_scikit_image():
    lab = np.random.default_rng(0).uniform((30, -15, -15), (80, 15, 15), (9, 9, 3))  # inside the gamut of sRGB
    stored = np.round(lab * (255 / 100, 1, 1)).astype(int)
    expected = skimage.color.lab2rgb(stored * (100 / 255, 1, 1)) * 255
    data = assemble((stored % 256).astype(np.uint8).tobytes(), stored, 8, 8)
    assert np.abs(decode(data) - expected).max() < 6  # white points are adapted in different ways


@pytest.mark.parametrize(("bits", "layout"), [(8, {}), (8, {"tile": (16, 16)}), (8, {"compression": "lzw"})])
def test_palette_keeps_the_high_bytes_of_its_colours(bits: int, layout: dict[str, Any]):
    indices = noise(1, bits)
    data = write(indices, photometric="palette", colormap=PALETTE, **layout)
    np.testing.assert_array_equal(decode(data), (PALETTE >> 8).T[indices[..., 0]])


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_palette_is_found_when_indices_are_packed_or_its_colours_have_8_bits(bits: int):
    indices = noise(1, bits)
    colours = PALETTE[:, : 2**bits]
    for stored in (colours, colours >> 8):
        data = assemble(packed(indices, bits), indices, bits, 3, t320=tuple(stored.ravel().tolist()))
        np.testing.assert_array_equal(decode(data), (colours >> 8).T[indices[..., 0]])


def test_alpha_lies_over_white_when_it_is_straight_or_premultiplied():
    straight = noise(4, 8)
    colours, alpha = straight[..., :3], straight[..., 3:]
    data = assemble(straight.tobytes(), straight, 8, 2, t338=(2,))
    np.testing.assert_array_equal(decode(data), over_white(colours, alpha))
    premultiplied = np.concatenate([np.minimum(colours, alpha), alpha], axis=2)
    data = assemble(premultiplied.tobytes(), premultiplied, 8, 2, t338=(1,))
    np.testing.assert_array_equal(decode(data), np.minimum(colours, alpha) + (255 - alpha))


def test_alpha_lies_over_white_when_it_belongs_to_grey_or_planes():
    values = noise(2, 8)
    data = write(values, photometric="minisblack", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(decode(data), over_white(values[..., :1].repeat(3, axis=2), values[..., 1:]))
    values = noise(4, 16)
    data = write(values, True, photometric="rgb", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(decode(data), over_white(values[..., :3] >> 8, values[..., 3:] >> 8))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("declared", [{"t338": (0,)}, {}])
def test_fourth_sample_is_ignored_when_it_is_not_declared_as_alpha(bits: int, declared: dict[str, Any]):
    values = noise(4, bits)
    data = assemble(values.tobytes(), values, bits, 2, **declared)
    np.testing.assert_array_equal(decode(data), values[..., :3] >> (bits - 8))


@pytest.mark.parametrize("kind", [1, 2])
def test_alpha_is_ignored_when_it_is_zero_everywhere(kind: int):
    values = noise(4, 8)
    values[..., 3] = 0
    data = assemble(values.tobytes(), values, 8, 2, t338=(kind,))
    np.testing.assert_array_equal(decode(data), values[..., :3])


@pytest.mark.parametrize("samples", [3, 4])
def test_first_three_bands_are_colours_when_they_are_written_as_grey(samples: int):
    values = noise(samples, 16)
    for planar in (False, True):
        data = write(values, planar, photometric="minisblack", extrasamples=[0] * (samples - 1))
        np.testing.assert_array_equal(decode(data), values[..., :3] >> 8)


@pytest.mark.parametrize("options", [{"bigtiff": True}, {"bigtiff": True, "byteorder": ">"}])
def test_big_tiff_is_decoded(options: dict[str, Any]):
    np.testing.assert_array_equal(decode(write(noise(3, 8), photometric="rgb", **options)), noise(3, 8))


def test_first_page_is_taken_when_there_are_several():
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        for seed in range(3):
            writer.write(noise(1, 16, seed)[..., 0], photometric="minisblack")
    np.testing.assert_array_equal(decode(buffer.getvalue()), (noise(1, 16) >> 8).repeat(3, axis=2))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_when_samples_have_16_bits(orientation: int):
    values = noise(3, 16)
    turned = {
        2: values[:, ::-1],
        3: values[::-1, ::-1],
        4: values[::-1],
        5: values.swapaxes(0, 1),
        6: np.rot90(values, -1),
        7: np.rot90(values, 2).swapaxes(0, 1),
        8: np.rot90(values),
    }
    data = write(values, photometric="rgb", extratags=[(274, "H", 1, orientation, True)])
    np.testing.assert_array_equal(decode(data), turned.get(orientation, values) >> 8)


# What is refused: the reason names the feature.


@pytest.mark.parametrize(
    ("data", "feature"),
    [
        pytest.param(save(Image.fromarray(SMOOTH), compression="lzma"), "compression LZMA", id="lzma"),
        pytest.param(write(noise(1, 8), photometric="cfa"), "photometric interpretation CFA", id="raw mosaic"),
        pytest.param(write(noise(1, 8).astype(np.complex64)), "format COMPLEXIEEEFP", id="complex"),
        pytest.param(assemble(b"", np.zeros((3, 3, 1)), 8, 1, t259=(34712,)), "compression JPEG2000", id="jpeg2k"),
        pytest.param(assemble(b"", np.zeros((3, 3, 1)), 8, 1, t259=(6,)), "compression OJPEG", id="old jpeg"),
        pytest.param(assemble(b"", np.zeros((3, 3, 1)), 8, 1, t259=(999,)), "compression 999", id="unknown"),
        pytest.param(
            assemble(bytes(9), np.zeros((3, 3, 1)), 8, 1, t317=(2,)), "predictor HORIZONTAL", id="predictor alone"
        ),
        pytest.param(assemble(bytes(27), np.zeros((3, 3, 3)), 8, 6, t530=(2, 2)), "subsampling", id="subsampled"),
        pytest.param(assemble(bytes(36), np.zeros((3, 3, 4)), 8, 5, t332=(2,)), "inks", id="spot colours"),
        pytest.param(assemble(bytes(18), np.zeros((3, 3, 3)), 8, 2, t258=(5, 6, 5)), "different depths", id="565"),
        pytest.param(write(np.zeros((3, 3, 1), np.uint32)), "uint32 samples have no defined white", id="32 bits"),
        pytest.param(write(np.zeros((3, 3, 1), np.int16)), "int16 samples have no defined white", id="signed"),
        pytest.param(write(np.zeros((3, 3, 1), np.float32)), "float32 samples .* --value-range", id="float"),
        pytest.param(write(noise(5, 8), photometric="minisblack"), "5 bands: .* --bands", id="5 bands"),
    ],
)  # fmt: skip
def test_reason_names_the_feature_when_it_is_not_supported(data: bytes, feature: str):
    with pytest.raises(ImageError, match=feature):
        decode(data)


# Damage.


@pytest.mark.parametrize("compression", [None, "lzw", "deflate", "packbits", "zstd", "jpeg", "webp"])
def test_strip_that_ends_early_is_refused(compression: str | None):
    data = write(SMOOTH, photometric="rgb", compression=compression)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        tag = file.pages.first.tags["StripByteCounts"]
        count, place = tag.value[0], tag.valueoffset
    shorter = bytearray(data)
    size = 4 if tag.dtype == 4 else 2
    shorter[place : place + size] = (count // 2).to_bytes(size, "little")
    with pytest.raises(ImageError, match=r"damaged|truncated"):
        decode(bytes(shorter))


def test_file_is_refused_when_strips_are_missing():
    data = write(noise(1, 8), rowsperstrip=5)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        offsets = file.pages.first.tags["StripOffsets"]
    for value in (0, len(data) + 100):
        damaged = bytearray(data)
        size = 4 if offsets.dtype == 4 else 2
        damaged[offsets.valueoffset : offsets.valueoffset + size] = value.to_bytes(size, "little")
        with pytest.raises(ImageError, match="truncated"):
            decode(bytes(damaged))


def test_size_is_checked_before_memory_is_taken():
    for width, height in ((100_000, 100_000), (2**31, 2**31)):
        data = assemble(b"\0", np.zeros((1, 1, 1)), 8, 1)
        fields = {256: width, 257: height}
        for tag, value in fields.items():
            place = data.index(tag.to_bytes(2, "little") + b"\4\0\1\0\0\0") + 8
            data = data[:place] + value.to_bytes(4, "little") + data[place + 4 :]
        with pytest.raises(ImageError, match=rf"{width} x {height} pixels: .*--max-image-pixels"):
            decode(data)


def test_strip_is_refused_when_it_would_unpack_to_more_than_its_size():
    bomb = zlib.compress(bytes(100_000_000), 9)
    values = np.zeros((4, 4, 1), np.uint8)
    with pytest.raises(ImageError, match="damaged"):
        decode(assemble(bomb, values, 8, 1, t259=(8,)))


def test_strip_of_too_many_bytes_is_refused_when_its_pixels_are_few():
    values = np.zeros((1000, 1000, 1), np.uint8)
    data = assemble(zlib.compress(bytes(10)), values, 8, 1, t259=(8,), t277=(60_000,), t338=(0,) * 59_999)
    with pytest.raises(ImageError, match="60000 bands"):
        decode(data)
    with pytest.raises(ImageError, match="a strip or tile has 60000000000 bytes"):
        decode(data, DecodingConfig(LIMIT, bands=(1, 2, 3)))


def test_jpeg_in_a_tile_is_refused_when_it_is_larger_than_the_tile():
    buffer = io.BytesIO()
    Image.fromarray(SMOOTH).convert("L").save(buffer, "JPEG")
    with pytest.raises(ImageError, match="200 x 150"):
        decode(assemble(buffer.getvalue(), np.zeros((HEIGHT, WIDTH, 1)), 8, 1, t259=(7,)))
