"""Tars of all kinds, sound and hostile. The "images" in them are any bytes: sources do not decode."""

import bz2
import gzip
import io
import lzma
import os
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskmill.pipeline.errors import ObjectError, SourceError, StorageError
from maskmill.pipeline.records import Failure, Shard
from maskmill.pipeline.sources import MAX_ENCODED_BYTES, Source, WebDatasetTars, open_source
from maskmill.pipeline.storage import LocalStorage, Skip, StoredObject
from tests.pipeline.sources import FailingStorage, contents, records, shards, tar_bytes, write

BLOCK = 512


def tar_source(tmp_path: Path, data: bytes, name: str = "a.tar") -> Source:
    (tmp_path / name).write_bytes(data)
    return open_source(str(tmp_path / name))


def test_tar_yields_its_images_in_archive_order(tmp_path: Path):
    data = tar_bytes({"b.jpg": b"1", "b.json": b"{}", "a/c.PNG": b"2", "b.txt": b"", ".x.jpg": b"", "a.jpg": b"3"})
    source = tar_source(tmp_path, data)
    assert isinstance(source, WebDatasetTars)
    assert shards(source) == [Shard(0, f"{tmp_path}/a.tar")]
    assert [(record.image_id, record.data) for record in records(source)] == [
        ("a.tar/b.jpg", b"1"),
        ("a.tar/a/c.PNG", b"2"),
        ("a.tar/a.jpg", b"3"),
    ]
    assert records(source)[0].source_uri == f"{tmp_path}/a.tar/b.jpg"


def test_folder_of_tars_is_one_shard_per_tar(tmp_path: Path):
    (tmp_path / "deep").mkdir()
    for name in ("1.tar", "deep/0.tar", "0.tar"):
        (tmp_path / name).write_bytes(tar_bytes({"x.jpg": name.encode()}))
    write(tmp_path, "index.json")
    source = open_source(str(tmp_path))
    assert [(shard.index, shard.uri) for shard in shards(source)] == [
        (0, f"{tmp_path}/0.tar"),
        (1, f"{tmp_path}/1.tar"),
        (2, f"{tmp_path}/deep/0.tar"),
    ]
    assert contents(source) == {
        "0.tar/x.jpg": b"0.tar",
        "1.tar/x.jpg": b"1.tar",
        "deep/0.tar/x.jpg": b"deep/0.tar",
    }


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("t-*.tar", ["t-08.tar", "t-09.tar", "t-10.tar"]),
        ("t-0?.tar", ["t-08.tar", "t-09.tar"]),
        ("t-[1]*.tar", ["t-10.tar"]),
        ("t-{09..10}.tar", ["t-09.tar", "t-10.tar"]),
    ],
)
def test_pattern_selects_tars(tmp_path: Path, pattern: str, expected: list[str]):
    for name in ("t-08.tar", "t-09.tar", "t-10.tar", "u-00.tar"):
        (tmp_path / name).write_bytes(tar_bytes({"x.jpg": b""}))
    write(tmp_path, "a.jpg")
    assert list(contents(open_source(str(tmp_path / pattern)))) == [f"{name}/x.jpg" for name in expected]


def test_pattern_raises_when_a_tar_of_its_range_is_missing(tmp_path: Path):
    (tmp_path / "t-0.tar").write_bytes(tar_bytes({}))
    with pytest.raises(SourceError, match=r"2 of these do not exist, such as t-1\.tar"):
        open_source(str(tmp_path / "t-{0..2}.tar"))


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.TGZ"])
def test_tar_is_read_when_it_is_compressed(tmp_path: Path, mode: str, name: str):
    source = tar_source(tmp_path, tar_bytes({"a.jpg": b"1" * 5000, "b.jpg": b"2"}, mode), name)
    assert contents(source) == {f"{name}/a.jpg": b"1" * 5000, f"{name}/b.jpg": b"2"}


def test_tar_without_images_is_a_failure(tmp_path: Path):
    failure = Failure("fetch", "the archive has no images")
    assert contents(tar_source(tmp_path, tar_bytes({"a.txt": b""}))) == {"a.tar": failure}
    assert contents(tar_source(tmp_path, tar_bytes({}))) == {"a.tar": failure}


def test_member_names_never_lead_out_of_the_archive(tmp_path: Path):
    members = [("/etc/a.jpg", b"1"), ("../../b.jpg", b"2"), ("./x/../c.jpg", b"3"), ("x//d.jpg", b"4")]
    data = contents(tar_source(tmp_path, tar_bytes(members)))
    assert data == {"a.tar/etc/a.jpg": b"1", "a.tar/b.jpg": b"2", "a.tar/x/c.jpg": b"3", "a.tar/x/d.jpg": b"4"}


def test_members_of_one_name_get_numbered_ids(tmp_path: Path):
    members = [("x.jpg", b"1"), ("./x.jpg", b"2"), ("x.jpg", b"3"), ("y.jpg", b"4")]
    source = tar_source(tmp_path, tar_bytes(members))
    assert contents(source) == {
        "a.tar/x.jpg": b"1",
        "a.tar/x.jpg#2": b"2",
        "a.tar/x.jpg#3": b"3",
        "a.tar/y.jpg": b"4",
    }
    assert records(source) == records(source)


def test_member_name_that_is_not_utf8_gets_an_escaped_id(tmp_path: Path):
    assert contents(tar_source(tmp_path, tar_bytes({"caf\udce9.jpg": b"x"}))) == {"a.tar/caf\\xe9.jpg": b"x"}


def test_long_member_names_are_kept(tmp_path: Path):
    name = "/".join(["ordner" * 10] * 5) + "/é.jpg"
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
            tar.addfile(tarfile.TarInfo(name))
        assert list(contents(tar_source(tmp_path, buffer.getvalue()))) == [f"a.tar/{name}"]


def test_links_and_devices_become_failures_and_folders_are_left_out(tmp_path: Path):
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    kinds = {
        "sym.jpg": tarfile.SYMTYPE,
        "hard.jpg": tarfile.LNKTYPE,
        "dev.jpg": tarfile.CHRTYPE,
        "d.jpg": tarfile.DIRTYPE,
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, kind in kinds.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, str(tmp_path / "secret.jpg")
            tar.addfile(info)
    data = contents(tar_source(tmp_path, buffer.getvalue()))
    assert sorted(data) == ["a.tar/dev.jpg", "a.tar/hard.jpg", "a.tar/sym.jpg"]
    assert all(isinstance(value, Failure) and "not followed" in value.reason for value in data.values())


def test_member_becomes_a_failure_when_its_size_is_over_the_limit(tmp_path: Path):
    info = tarfile.TarInfo("huge.jpg")
    info.size = MAX_ENCODED_BYTES + 1
    data = contents(tar_source(tmp_path, info.tobuf() + bytes(10 * BLOCK)))
    assert list(data) == ["a.tar/huge.jpg", "a.tar"]
    assert data["a.tar/huge.jpg"] == Failure("fetch", "536870913 bytes: the limit for an encoded image is 536870912")


def concatenated(mode: str) -> bytes:
    """`cat` of two tars, each compressed by itself."""
    return tar_bytes({"a.jpg": b"1", "b.jpg": b"2"}, mode) + tar_bytes({"a.jpg": b"3", "c.jpg": b"4"}, mode)


BOTH = {"a.tar/a.jpg": b"1", "a.tar/b.jpg": b"2", "a.tar/a.jpg#2": b"3", "a.tar/c.jpg": b"4"}


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_concatenated_tars_are_read_to_the_end(tmp_path: Path, mode: str):
    assert contents(tar_source(tmp_path, concatenated(mode))) == BOTH


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_concatenated_tars_are_read_to_the_end_when_they_are_compressed_together(
    tmp_path: Path, compress: Callable[[bytes], bytes]
):
    assert contents(tar_source(tmp_path, compress(concatenated("w")))) == BOTH


@pytest.mark.parametrize("padding", [0, 1, 300, BLOCK, 100 * BLOCK, 1000 * BLOCK + 7])
def test_padding_after_the_end_of_a_tar_is_no_failure(tmp_path: Path, padding: int):
    data = tar_bytes({"a.jpg": b"1"}) + bytes(padding)
    assert contents(tar_source(tmp_path, data)) == {"a.tar/a.jpg": b"1"}
    assert contents(tar_source(tmp_path, gzip.compress(data))) == {"a.tar/a.jpg": b"1"}


@pytest.mark.parametrize("garbage", [b"x", b"not a header" * 50, tar_bytes({"z.jpg": b""})[:700]])
@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_one_failure_follows_when_garbage_follows_a_tar(tmp_path: Path, mode: str, garbage: bytes):
    data = contents(tar_source(tmp_path, concatenated(mode) + garbage))
    failure = data.pop("a.tar")
    assert isinstance(failure, Failure)
    assert failure.reason.startswith("the archive cannot be read further: ")
    data.pop("a.tar/z.jpg", None)  # the whole member of the truncated tar
    assert data == BOTH


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("cut", [1, 400, BLOCK, BLOCK + 1, 2 * BLOCK])
def test_one_failure_follows_when_the_second_of_two_tars_is_truncated(tmp_path: Path, form: int, cut: int):
    second = io.BytesIO()
    with tarfile.open(fileobj=second, mode="w", format=form) as tar:
        tar.addfile(tarfile.TarInfo("ö" * 150 + ".jpg"))
    data = contents(tar_source(tmp_path, tar_bytes({"a.jpg": b"1"}) + second.getvalue()[:cut]))
    assert data.pop("a.tar/a.jpg") == b"1"
    assert [(image_id, type(value)) for image_id, value in data.items()] == [("a.tar", Failure)]


def tar_with_pax_headers(headers: dict[str, str]) -> bytes:
    """a.jpg, which has these pax headers, and b.jpg."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, pax_headers in (("a.jpg", headers), ("b.jpg", {})):
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = 3, pax_headers
            tar.addfile(info, io.BytesIO(b"abc"))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("keyword", "size"),
    [("SCHILY.xattr.com.apple.ResourceFork", 2_000_000), ("LIBARCHIVE.xattr.x", 2_000_000), ("comment", 50_000_000)],
)
def test_member_is_read_when_its_pax_header_is_large(tmp_path: Path, keyword: str, size: int):
    source = tar_source(tmp_path, tar_with_pax_headers({keyword: "x" * size, "path": "ä.jpg"}))
    tracemalloc.start()
    try:
        assert contents(source) == {"a.tar/ä.jpg": b"abc", "a.tar/b.jpg": b"abc"}
        assert tracemalloc.get_traced_memory()[1] < 2.5 * size  # TarFile itself takes more than four times the header
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"comment": "x" * (64 * 2**20)}, "a pax header of 67108882 bytes: the limit is 67108864"),
        ({"path": "x" * 2**20 + ".jpg"}, "a name of 1048581 bytes"),
    ],
)
def test_reading_ends_with_the_reason_when_a_pax_header_is_over_the_limit(
    tmp_path: Path, headers: dict[str, str], reason: str
):
    data = contents(tar_source(tmp_path, tar_with_pax_headers(headers)))
    assert data == {"a.tar": Failure("fetch", f"the archive cannot be read further: {reason}")}


@pytest.mark.parametrize(
    "records", [b"junk", b"5 a=", b"99 path=x.jpg\n", b"0 path=x.jpg\n", b"7 =abc\n", b"9" * 1000, b"13 path=x.jpg"]
)
def test_reading_ends_when_a_pax_header_is_damaged(tmp_path: Path, records: bytes):
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, len(records)
    padded = records + bytes(-len(records) % BLOCK)
    data = contents(tar_source(tmp_path, header.tobuf() + padded + tar_bytes({"a.jpg": b"1"})))
    assert [(image_id, type(value)) for image_id, value in data.items()] == [("a.tar", Failure)]


def test_pax_headers_of_size_and_of_sparse_members_are_honoured(tmp_path: Path):
    sparse = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "s.jpg", "GNU.sparse.realsize": "9"}
    data = contents(tar_source(tmp_path, tar_with_pax_headers(sparse)))
    assert list(data) == ["a.tar/s.jpg", "a.tar/b.jpg"]
    assert isinstance(data["a.tar/s.jpg"], Failure)
    sized = bytearray(tar_with_pax_headers({"size": "3", "comment": "x" * 600}))
    header = sized.index(b"a.jpg" + bytes(95))
    sized[header + 124 : header + 136] = b"00000000000\0"  # as writers leave it where the pax header tells
    sized[header + 148 : header + 156] = b" " * 8
    sized[header + 148 : header + 156] = b"%06o\0 " % sum(sized[header : header + BLOCK])
    assert contents(tar_source(tmp_path, bytes(sized))) == {"a.tar/a.jpg": b"abc", "a.tar/b.jpg": b"abc"}


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
@pytest.mark.parametrize("size", [-1, -BLOCK, -(2**40)])
def test_reading_ends_when_a_member_has_a_negative_size(tmp_path: Path, kind: bytes, size: int):
    header = tarfile.TarInfo("a.json")
    header.type = kind
    block = bytearray(header.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = b"\xff" + (256**11 + size).to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    data = contents(tar_source(tmp_path, bytes(block) + tar_bytes({"b.jpg": b"1"})))
    assert [(image_id, type(value)) for image_id, value in data.items()] == [("a.tar", Failure)]


THREE = {"a.jpg": b"1" * 700, "b.jpg": b"2" * 700, "c.jpg": b"3" * 700}  # each a header and two blocks


@pytest.mark.parametrize(
    ("kept_blocks", "expected"),
    [
        (4.5, ["a.tar/a.jpg", "a.tar/b.jpg"]),  # inside the data of b
        (3.5, ["a.tar/a.jpg", "a.tar"]),  # inside the header of b
        (3, ["a.tar/a.jpg", "a.tar"]),  # between a and b
        (9, ["a.tar/a.jpg", "a.tar/b.jpg", "a.tar/c.jpg", "a.tar"]),  # before the end marker
        (1, ["a.tar/a.jpg"]),
        (0.5, ["a.tar"]),
        (0, ["a.tar"]),
    ],
)
def test_one_failure_follows_the_whole_members_when_the_tar_is_truncated(
    tmp_path: Path, kept_blocks: float, expected: list[str]
):
    data = contents(tar_source(tmp_path, tar_bytes(THREE)[: int(kept_blocks * BLOCK)]))
    assert list(data) == expected
    *whole, last = data.values()
    assert whole == list(THREE.values())[: len(whole)]
    assert isinstance(last, Failure)
    assert last.step == "fetch"
    assert last.reason.startswith("the archive cannot be read further: ")


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_reading_goes_on_with_the_next_tar_when_one_is_truncated(tmp_path: Path, mode: str):
    photo = os.urandom(20_000)
    whole = tar_bytes({"a.jpg": photo, "b.jpg": photo, "c.jpg": photo}, mode)
    (tmp_path / "1.tar").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "2.tar").write_bytes(whole)
    data = contents(open_source(str(tmp_path)))
    (failed,) = [image_id for image_id, value in data.items() if isinstance(value, Failure)]
    assert failed.startswith("1.tar")
    assert [data[f"2.tar/{name}"] for name in ("a.jpg", "b.jpg", "c.jpg")] == [photo] * 3


def test_failure_has_the_id_of_the_tar_when_a_header_is_damaged(tmp_path: Path):
    damaged = bytearray(tar_bytes(THREE))
    damaged[3 * BLOCK + 150] ^= 1  # the checksum of b's header
    data = contents(tar_source(tmp_path, bytes(damaged)))
    assert data["a.tar"] == Failure("fetch", "the archive cannot be read further: bad checksum")
    assert list(data) == ["a.tar/a.jpg", "a.tar"]


@pytest.mark.parametrize("size", [2**40, 2**80])
def test_reading_ends_when_a_member_claims_more_bytes_than_there_are(tmp_path: Path, size: int):
    info = tarfile.TarInfo("a.json")
    info.size = size
    data = contents(tar_source(tmp_path, info.tobuf(tarfile.GNU_FORMAT) + bytes(10 * BLOCK)))
    assert [(image_id, type(value)) for image_id, value in data.items()] == [("a.tar", Failure)]


@pytest.mark.parametrize("junk", [b"", b"x", b"not a tar at all" * 100, b"\x1f\x8b" + bytes(600), b"BZh9" + bytes(600)])
def test_tar_is_one_failure_when_it_is_no_tar(tmp_path: Path, junk: bytes):
    ((image_id, data),) = contents(tar_source(tmp_path, junk)).items()
    assert image_id == "a.tar"
    assert isinstance(data, Failure)
    assert "\n" not in data.reason
    assert " at 0x" not in data.reason


def test_tar_is_one_failure_when_it_vanishes_after_the_plan(tmp_path: Path):
    source = tar_source(tmp_path, tar_bytes(THREE))
    (shard,) = shards(source)
    (tmp_path / "a.tar").unlink()
    (record,) = source.read(shard)
    assert record.image_id == "a.tar"
    assert isinstance(record.data, Failure)
    assert "No such file" in record.data.reason


def test_nothing_is_written_when_a_tar_is_read(tmp_path: Path):
    contents(tar_source(tmp_path, tar_bytes(THREE)))
    assert os.listdir(tmp_path) == ["a.tar"]


@settings(deadline=None)
@given(data=st.data())
def test_reading_never_raises_when_bytes_of_a_tar_are_changed(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
):
    form = data.draw(st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name in ("a.jpg", "ö" * 150 + ".jpg", "c.jpg"):
            info = tarfile.TarInfo(name)
            info.size = 3
            tar.addfile(info, io.BytesIO(b"abc"))
    damaged = bytearray(buffer.getvalue())
    for position in data.draw(st.lists(st.integers(0, min(len(damaged), 7 * BLOCK) - 1), min_size=1, max_size=4)):
        damaged[position] = data.draw(st.integers(0, 255))
    contents(tar_source(tmp_path_factory.mktemp("fuzz"), bytes(damaged)))


def test_reading_ends_when_a_header_has_a_name_of_many_bytes(tmp_path: Path):
    info = tarfile.TarInfo("x" * 2_000_000 + ".jpg")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", format=tarfile.GNU_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"))
        tar.addfile(info)
    data = contents(tar_source(tmp_path, buffer.getvalue(), "a.tar.gz"))
    failure = Failure("fetch", "the archive cannot be read further: a name of 2000005 bytes")
    assert data == {"a.tar.gz/a.jpg": b"", "a.tar.gz": failure}


def test_memory_does_not_grow_with_the_number_of_members(tmp_path: Path):
    source = tar_source(tmp_path, tar_bytes([(f"{number}.txt", b"") for number in range(20_000)]))
    tracemalloc.start()
    try:
        assert list(contents(source)) == ["a.tar"]
        assert tracemalloc.get_traced_memory()[1] < 5_000_000  # 20,000 headers take four times that
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("bytes_left", [0, 600, 30_000])
def test_only_trouble_with_the_store_leaves_read(tmp_path: Path, mode: str, bytes_left: int):
    photographs = {name: os.urandom(20_000) for name in ("a.jpg", "b.jpg", "c.jpg")}
    source = tar_source(tmp_path, tar_bytes(photographs, mode))
    (shard,) = shards(source)
    with pytest.raises(StorageError, match="the store is gone"):
        list(WebDatasetTars(FailingStorage(tmp_path, bytes_left), source.uri).read(shard))
    replaced = list(WebDatasetTars(FailingStorage(tmp_path, bytes_left, ObjectError), source.uri).read(shard))
    assert replaced[-1].data == Failure("fetch", "the store is gone")


@dataclass(frozen=True)
class Bucket(LocalStorage):
    """A store that has objects below objects, as no disk can."""

    keys: tuple[str, ...] = ()

    def list(self, prefix: str = "", skip: Skip = lambda key: False) -> Iterator[StoredObject]:
        return (StoredObject(key, 0) for key in self.keys if not skip(key))

    def exists(self, key: str) -> bool:
        return key in self.keys


def test_tar_below_another_tar_is_refused(tmp_path: Path):
    bucket = Bucket(tmp_path, ("a.tar", "a.tar/b.tar"))
    with pytest.raises(SourceError, match=r"a\.tar/b\.tar: is below a\.tar, which is itself a file"):
        shards(WebDatasetTars(bucket, "bucket"))
    assert len(shards(WebDatasetTars(Bucket(tmp_path, ("x.tar/y.tar", "x.tar/z.tar")), "bucket"))) == 2
