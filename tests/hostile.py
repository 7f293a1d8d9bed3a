"""Files that somebody made to do harm, or that something broke: pictures, tars, Parquet files. All are made here."""

from __future__ import annotations

import gzip
import io
import random
import struct
import tarfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.fakes import picture

MIB = 2**20
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
EXTENSIONS = {"JPEG": "jpg", "TIFF": "tif", "PPM": "ppm"}


def refused_pictures() -> dict[str, bytes]:
    """By name: none of them is a picture, or none that may be decoded."""
    files: dict[str, bytes] = {}
    for form in FORMATS:
        sound, extension = _save(_noise(), form), EXTENSIONS.get(form, form.lower())
        for kept in (3, 20, len(sound) // 2, len(sound) * 9 // 10):
            files[f"cut/{form} {kept}.{extension}"] = sound[:kept]
    return files | {
        "magic/empty.png": b"",
        "magic/zeros.png": bytes(5000),
        "magic/text.jpg": b"this is no picture\n" * 50,
        "magic/page.jpg": b"<!doctype html><html><body>404</body></html>",
        "magic/gzip.png": gzip.compress(picture(1)),
        "magic/zip.png": b"PK\3\4" + bytes(200),
        "magic/script.jpg": b"#!/bin/sh\ntouch /tmp/owned\n",
        "magic/postscript.tif": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(x) (w) file\n",
        "magic/pdf.png": b"%PDF-1.7\n1 0 obj <</Type/Catalog>> endobj\n",
        "magic/svg.png": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        "magic/signature only.png": b"\x89PNG\r\n\x1a\n",
        "size/png.png": png(2**31 - 1, 2**31 - 1, b""),
        "size/none.png": png(0, 0, b""),
        "size/gif.gif": _patched(_save(_noise(), "GIF"), 6, struct.pack("<HH", 65535, 65535)),
        "size/bmp.bmp": _patched(_save(_noise(), "BMP"), 18, struct.pack("<ii", 2**31 - 1, -(2**31))),
        "size/jpeg.jpg": _jpeg_of_size(65535, 65535),
        "size/ppm.ppm": b"P6 99999999999999999999 99999999999999999999 255\n",
        "size/negative.ppm": b"P6 -5 -5 255\n" + bytes(75),
        "size/tiff.tif": _tiff({256: (4, 2**32 - 1), 257: (4, 2**32 - 1)}),
        "size/wide.png": png(2_000_000, 1, zlib.compress(bytes(6_000_001), 9)),
        "bomb/text.png": _with_chunk(b"zTXt", b"a\0\0" + _bomb(256 * MIB)),
        "bomb/international text.png": _with_chunk(b"iTXt", b"a\0\1\0\0\0" + _bomb(256 * MIB)),
        "bomb/profile.png": _with_chunk(b"iCCP", b"a\0\0" + _bomb(256 * MIB)),
        "tiff/its own next page.tif": _tiff({}, next_page=8),
        "tiff/tag of 2^31 values.tif": _tiff({273: (4, 2**31)}, count=2**31),
        "tiff/strip beyond the end.tif": _tiff({256: (4, 8), 257: (4, 8), 273: (4, 2**31), 279: (4, 64)}),
        "tiff/100000 x 100000.tif": _tiff({256: (4, 100_000), 257: (4, 100_000), 273: (4, 8), 279: (4, 8)}),
        "tiff/width of many values.tif": _deflated_tiff(b"", {256: (2, 8), 257: (4, 2**31 - 1), 279: (3, 0)}),
        "tiff/60000 bands.tif": _deflated_tiff(b"", {277: (3, 60_000)}),
        "tiff/bomb in a strip.tif": _deflated_tiff(_bomb(256 * MIB), {}),
        "tiff/tile of 2^31 pixels.tif": _deflated_tiff(
            b"", {322: (4, 2**16), 323: (4, 2**15), 324: (4, 8), 325: (4, 8)}
        ),
        "tiff/jpeg larger than its strip.tif": _strip_tiff(_jpeg_of_size(60_000, 60_000), {259: (3, 7)}),
    }


def harmless_pictures() -> dict[str, bytes]:
    """By name: what is wrong with them does not touch the pixels, and must not take memory or time."""
    jpeg = _save(_noise(), "JPEG")
    return {
        "sound.png": picture(7),
        "bomb/pixels beyond the picture.png": png(8, 8, zlib.compress(bytes(8 * 25)) + _bomb(256 * MIB)),
        "bomb/frames.gif": _gif_of_frames(3000),
        "bomb/frames that are not there.png": _with_chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0)),
        "bomb/chunks.png": _with_chunk(b"tEXt", b"a\0b", 5000),
        "exif/ends early.jpg": _with_segment(jpeg, 0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12"),
        "exif/garbage.jpg": _with_segment(jpeg, 0xE1, b"Exif\0\0garbage"),
        "exif/its own next page.jpg": _with_segment(jpeg, 0xE1, b"Exif\0\0" + _tiff({}, next_page=8)),
        "exif/orientation of 2^31 values.jpg": _with_segment(jpeg, 0xE1, b"Exif\0\0" + _tiff({274: (3, 6)}, 2**31)),
        "exif/orientation 77.jpg": _with_segment(jpeg, 0xE1, b"Exif\0\0" + _tiff({274: (3, 77)})),
        "icc/garbage.jpg": _with_segment(jpeg, 0xE2, b"ICC_PROFILE\0\1\1" + bytes(range(200))),
        "icc/part 9 of 3.jpg": _with_segment(jpeg, 0xE2, b"ICC_PROFILE\0\x09\x03" + bytes(9)),
        "icc/garbage.png": _with_chunk(b"iCCP", b"a\0\0" + zlib.compress(b"no profile" * 9)),
        "name/line\nbreak.png": picture(8),
        "name/" + "long" * 60 + ".png": picture(9),
    }


def doubtful_pictures() -> dict[str, bytes]:
    """By name: a few bits of each are flipped. They may still be pictures."""
    instants = random.Random(0)
    files: dict[str, bytes] = {}
    for form in FORMATS:
        sound, extension = _save(_noise(), form), EXTENSIONS.get(form, form.lower())
        for number in range(3):
            data = bytearray(sound)
            for _ in range(4):
                data[instants.randrange(len(data))] ^= 1 << instants.randrange(8)
            files[f"flipped/{form} {number}.{extension}"] = bytes(data)
    return files


def tars() -> dict[str, bytes]:
    """By name: tars with at least one image, or damage, in each."""
    sound = _tar(_member("a.png", picture(1)), _member("b.png", picture(2)))
    link = _member("l.png", kind=tarfile.SYMTYPE, target="/etc/passwd")
    huge = _header("huge.png", 513 * MIB)
    zeros = gzip.compress(bytes(27 * MIB))
    return {
        "sound.tar": sound,
        **{f"cut {kept}.tar": sound[:kept] for kept in (0, 100, 512, 700, 1024, 1500, 2048)},
        "leads out.tar": _tar(_member("../../out.png", picture(1)), _member("x/../../../y.png", picture(2))),
        "absolute.tar": _tar(_member("/tmp/absolute.png", picture(1))),
        "link.tar": _tar(link, _member("l.png", picture(1)), _member("l.png/x.png", picture(2))),
        "hard link.tar": _tar(_member("h.png", kind=tarfile.LNKTYPE, target="../../../etc/passwd")),
        "link to itself.tar": _tar(_member("s.png", kind=tarfile.SYMTYPE, target="s.png")),
        "character device.tar": _tar(_member("d.png", kind=tarfile.CHRTYPE)),
        "block device.tar": _tar(_member("d.png", kind=tarfile.BLKTYPE)),
        "pipe.tar": _tar(_member("p.png", kind=tarfile.FIFOTYPE)),
        "unknown kind.tar": _tar(_member("u.png", picture(1), kind=b"Q")),
        "folder.tar": _tar(_member("f.png", kind=tarfile.DIRTYPE), _member("f.png/g.png", picture(1))),
        "twice.tar": _tar(*[_member("same.png", picture(seed)) for seed in range(4)]),
        "not utf8.tar": _tar(_member("caf\udce9\udcff.png", picture(1))),
        "control characters.tar": _tar(_member("a\nb\x1b[31m\t.png", picture(1))),
        "nothing but an extension.tar": _tar(_member("x/.png", picture(1)), _member("x/y.png", picture(1))),
        "long name.tar": _tar(_member("d/" * 5000 + "x.png", picture(1))),
        "size beyond the end.tar": _header("x.png", 2**33) + picture(1),
        "size of 2^80.tar": _header("x.png", 2**80) + bytes(2048),
        "negative size.tar": _header("x.png", -512) + bytes(2048),
        "size 0 with contents.tar": _header("x.png", 0) + _padded(picture(1)) + bytes(1024),
        **{
            f"pax size {size}.tar": _tar(_member("x.png", picture(1), pax={"size": size}))
            for size in ("-1", "many", "9" * 40, "18446744073709551616", "")
        },
        "pax path leads out.tar": _tar(_member("x.png", picture(1), pax={"path": "/../../etc/p.png"})),
        "pax path with a nul.tar": _tar(_member("x.png", picture(1), pax={"path": "a\0b.png"})),
        "pax without a member.tar": _tar(_member("x.png", pax={"comment": "c"}))[:1024],
        "pax record that lies.tar": _header("x", 20, b"x") + _padded(b"99999 path=x.png\n") + sound,
        "long name that lies.tar": _header("x", 2**34, tarfile.GNUTYPE_LONGNAME) + sound,
        "long name without end.tar": b"".join(_header("x", 1, b"L") + _padded(b"n") for _ in range(3000)) + sound,
        "sparse.tar": _header("s.png", 512, tarfile.GNUTYPE_SPARSE) + bytes(512) + sound,
        "pax sparse.tar": _tar(_member("s.png", picture(1), pax=_SPARSE)),
        "compressed.tar": gzip.compress(sound),
        "not compressed.tar.gz": sound,
        "compressed twice.tgz": gzip.compress(gzip.compress(sound)),
        "cut.tgz": gzip.compress(sound)[:-20],
        "bad checksum.tgz": gzip.compress(sound)[:-8] + bytes(8),
        "tar in a tar.tar": _tar(_member("inner.tar", sound), _member("inner.png", sound)),
        "no tar.tar": b"this is no tar\n" * 100,
        "picture.tar": picture(1),
        "junk behind.tar": _tar(_member("a.png", picture(1)))[:-9000] + b"junk" * 3000,
        "bomb.tgz": gzip.compress(huge) + 19 * zeros + gzip.compress(bytes(1024)),
        "bomb that is no image.tgz": gzip.compress(_header("x.txt", 270 * MIB)) + 10 * zeros + gzip.compress(sound),
    }


def parquets() -> dict[str, bytes]:
    """By name: Parquet files, or what says that it is one."""
    pictures = [picture(seed) for seed in range(4)]
    sound = _parquet({"image": pictures, "key": ["a", "b", "c", "d"]})
    paths = ["../../out", "/etc/passwd", "", "..", ".", "a\nb", "x" * 5000, "same", "same", "a\\b", "c:\\d", "s3://b/k"]
    nested = pa.array([{"bytes": data, "path": None} for data in pictures])
    footer = int.from_bytes(sound[-8:-4], "little")
    return {
        "sound": sound,
        **{f"cut {kept}": sound[:kept] for kept in (0, 3, 4, 100, len(sound) // 2, len(sound) - 1)},
        **{
            f"footer of {size} bytes": sound[:-8] + struct.pack("<I", size) + b"PAR1" for size in (0, footer - 1, 2**31)
        },
        "magic only": b"PAR1PAR1",
        "encrypted": sound[:-4] + b"PARE",
        "text": b"this is no Parquet file\n" * 40,
        "no rows": _parquet({"image": pa.array([], pa.binary())}),
        "no columns": _parquet({}),
        "numbers": _parquet({"image": [1, 2, 3]}),
        "texts": _parquet({"image": ["a.png", "b.png"]}),
        "lists": _parquet({"image": [[data] for data in pictures]}),
        "struct of numbers": _parquet({"image": [{"bytes": 1, "path": "a"}]}),
        "numbers for paths": _parquet({"image": pictures, "key": [1, 2, 3, 4]}),
        "no bytes": _parquet({"image": pa.array([None, pictures[0], b""], pa.binary())}),
        "no structs": _parquet({"image": pa.array([None, nested[0].as_py()], nested.type)}),
        "paths that lead out": _parquet({"image": [pictures[0]] * len(paths), "key": paths}),
        "paths that are bytes": _parquet({"image": pictures, "key": [b"\xff", b"a\0b", b"", b"c"]}),
        "hostile pictures": _parquet({"image": [data for data in refused_pictures().values() if len(data) < MIB]}),
        **{f"flipped {position}": _flipped(sound, position) for position in (4, 60, 300, len(sound) - footer, -20)},
    }


def _parquet(columns: dict[str, Any]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


def _flipped(data: bytes, position: int) -> bytes:
    flipped = bytearray(data)
    flipped[position] ^= 4
    return bytes(flipped)


_SPARSE = {
    "GNU.sparse.major": "1",
    "GNU.sparse.minor": "0",
    "GNU.sparse.name": "s.png",
    "GNU.sparse.realsize": "9" * 18,
}


def png(width: int, height: int, data: bytes, extra: bytes = b"") -> bytes:
    """An RGB PNG of 8 bits, with any compressed data, and other chunks before it."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = _chunk(b"IHDR", header) + extra + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _with_chunk(kind: bytes, data: bytes, times: int = 1) -> bytes:
    return png(8, 8, zlib.compress(bytes([0, *[40, 80, 120] * 8] * 8)), times * _chunk(kind, data))


def _with_segment(jpeg: bytes, marker: int, data: bytes) -> bytes:
    return jpeg[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data + jpeg[2:]


def _bomb(size: int) -> bytes:
    """Zeros, compressed a thousandfold."""
    packer = zlib.compressobj(1)
    return b"".join([*(packer.compress(bytes(MIB)) for _ in range(size // MIB)), packer.flush()])


def _noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 48, 3), np.uint8))


def _save(image: Image.Image, form: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def _patched(data: bytes, position: int, value: bytes) -> bytes:
    return data[:position] + value + data[position + len(value) :]


def _jpeg_of_size(width: int, height: int) -> bytes:
    data = _save(_noise(), "JPEG")
    return _patched(data, data.index(b"\xff\xc0") + 5, struct.pack(">HH", height, width))


def _gif_of_frames(count: int) -> bytes:
    """Each frame the same few bytes."""
    data = _save(Image.new("P", (4, 4)), "GIF")
    start = data.index(b"\x2c")
    return data[:start] + data[start:-1] * count + data[-1:]


def _tiff(tags: dict[int, tuple[int, int]], count: int = 1, next_page: int = 0) -> bytes:
    """A TIFF of one page with these tags: number -> (type, value), each said to have so many values."""
    entries = b"".join(struct.pack("<HHII", tag, kind, count, value) for tag, (kind, value) in sorted(tags.items()))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + struct.pack("<I", next_page)


def _strip_tiff(strip: bytes, tags: dict[int, tuple[int, int]]) -> bytes:
    """A TIFF of 8 x 8 grey pixels in one strip, at the end of the file; further tags."""
    fields = {256: (4, 8), 257: (4, 8), 258: (3, 8), 262: (3, 1), 273: (4, 0), 278: (4, 8), 279: (4, len(strip))} | tags
    start = len(_tiff(fields))
    return _tiff(fields | {273: (4, start)}) + strip


def _deflated_tiff(strip: bytes, tags: dict[int, tuple[int, int]]) -> bytes:
    return _strip_tiff(strip or zlib.compress(bytes(64)), {259: (3, 8)} | tags)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def _header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def _member(
    name: str,
    data: bytes = b"",
    kind: bytes = tarfile.REGTYPE,
    target: str = "",
    pax: dict[str, str] | None = None,
) -> Callable[[tarfile.TarFile], None]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size, info.pax_headers = kind, target, len(data), pax or {}
    return lambda tar: tar.addfile(info, io.BytesIO(data))


def _tar(*members: Callable[[tarfile.TarFile], None]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8") as tar:
        for add in members:
            add(tar)
    return buffer.getvalue()
