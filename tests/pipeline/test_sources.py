"""Folders and tars of all kinds, sound and hostile. The "images" here are any bytes: sources do not decode."""

import io
import logging
import os
import pickle
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import SourceError, StorageError
from pipeline.records import Failure, ImageRecord, Shard
from pipeline.sources import MAX_ENCODED_BYTES, ImageFolder, Source, WebDatasetTars, is_image, open_source

BLOCK = 512


def write(root: Path, *names: str) -> None:
    """Files whose contents are their names."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def tar_bytes(members: Mapping[str, bytes] | list[tuple[str, bytes]], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:  # pyright: ignore[reportCallIssue, reportArgumentType]
        for name, data in members.items() if isinstance(members, Mapping) else members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def tar_source(tmp_path: Path, data: bytes, name: str = "a.tar") -> Source:
    (tmp_path / name).write_bytes(data)
    return open_source(str(tmp_path / name))


def shards(source: Source, images_per_shard: int = 100) -> list[Shard]:
    return list(source.plan(images_per_shard))


def records(source: Source) -> list[ImageRecord]:
    return [record for shard in shards(source) for record in source.read(shard)]


def contents(source: Source) -> dict[str, bytes | Failure]:
    read = records(source)
    by_id = {record.image_id: record.data for record in read}
    assert len(by_id) == len(read), "ids are unique"
    return by_id


# Any source.


def test_open_source_says_which_addresses_it_knows_when_given_another():
    with pytest.raises(StorageError, match=r"give a path or s3://bucket/prefix"):
        open_source("https://example.org/a.jpg")


@pytest.mark.parametrize("name", ["absent", "absent.jpg", "absent.tar", "absent-*.tar", "no/such/folder/*.tar", "a\0b"])
def test_open_source_raises_when_there_is_no_such_path(tmp_path: Path, name: str):
    with pytest.raises(SourceError, match="no such file or folder"):
        open_source(str(tmp_path / name))


@pytest.mark.parametrize("name", ["notes.txt", "noextension", ".hidden.jpg"])
def test_open_source_raises_when_the_file_is_neither_image_nor_tar(tmp_path: Path, name: str):
    write(tmp_path, name)
    with pytest.raises(SourceError, match="neither an image"):
        open_source(str(tmp_path / name))


def test_open_source_says_what_it_looked_for_when_the_folder_has_none(tmp_path: Path):
    write(tmp_path, "readme.txt", "deep/er/data.csv", ".git/x.jpg")
    with pytest.raises(SourceError, match=r"no images \(jpg, .*png.*no tars"):
        open_source(str(tmp_path))


def test_plan_raises_when_the_folder_holds_images_and_tars(tmp_path: Path):
    for names in (["a.jpg", "b.tar"], ["a.tar", "b.jpg"]):
        folder = tmp_path / names[0]
        write(folder, *names)
        with pytest.raises(SourceError, match="both images and tars"):
            shards(open_source(str(folder)))


# Folders.


def test_folder_yields_its_images_sorted_with_relative_ids(tmp_path: Path):
    names = ["A.JPG", "b/1.png", "b/2.jpeg", "b/c/1.Tiff", "b.webp", "é.gif", "日本/写真.bmp"]
    write(tmp_path, *names)
    source = open_source(str(tmp_path))
    assert isinstance(source, ImageFolder)
    assert contents(source) == {name: name.encode() for name in names}
    assert [record.image_id for record in records(source)] == sorted(names)
    assert records(source)[0].source_uri == f"{tmp_path}/A.JPG"


def test_folder_is_cut_into_shards_in_order(tmp_path: Path):
    write(tmp_path, *(f"{number}.jpg" for number in range(7)))
    cut = shards(open_source(str(tmp_path)), images_per_shard=3)
    assert [shard.index for shard in cut] == [0, 1, 2]
    assert [shard.image_ids for shard in cut] == [
        ("0.jpg", "1.jpg", "2.jpg"),
        ("3.jpg", "4.jpg", "5.jpg"),
        ("6.jpg",),
    ]
    assert {shard.uri for shard in cut} == {str(tmp_path)}


def test_folder_warns_how_many_files_it_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    write(tmp_path, "a.jpg", "a.txt", "b.TXT", "c.json", "README", ".DS_Store", "._a.jpg")
    with caplog.at_level(logging.WARNING):
        assert list(contents(open_source(str(tmp_path)))) == ["a.jpg"]
    assert "4 files are no images and were left out (.txt: 2, no extension: 1, .json: 1)" in caplog.text


def test_folder_says_nothing_when_all_files_are_images(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    write(tmp_path, "a.jpg")
    shards(open_source(str(tmp_path)))
    assert caplog.text == ""


def test_single_image_is_a_source_of_one(tmp_path: Path):
    write(tmp_path, "a.jpg", "b.jpg", "c.tar")
    source = open_source(str(tmp_path / "b.jpg"))
    assert contents(source) == {"b.jpg": b"b.jpg"}
    assert source.uri == f"{tmp_path}/b.jpg"


def test_image_becomes_a_failure_when_it_vanishes_after_the_plan(tmp_path: Path):
    write(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    source = open_source(str(tmp_path))
    (shard,) = shards(source)
    (tmp_path / "b.jpg").unlink()
    read = list(source.read(shard))
    assert [record.image_id for record in read] == ["a.jpg", "b.jpg", "c.jpg"]
    assert read[1].data == Failure("fetch", f"{tmp_path}/b.jpg: No such file or directory")
    assert read[2].data == b"c.jpg"


def test_image_becomes_a_failure_when_it_turned_into_a_folder(tmp_path: Path):
    write(tmp_path, "a.jpg")
    source = open_source(str(tmp_path))
    (shard,) = shards(source)
    (tmp_path / "a.jpg").unlink()
    (tmp_path / "a.jpg").mkdir()
    (record,) = source.read(shard)
    assert isinstance(record.data, Failure)
    assert "Is a directory" in record.data.reason


def test_image_becomes_a_failure_when_its_bytes_are_over_the_limit(tmp_path: Path):
    write(tmp_path, "a.jpg")
    with open(tmp_path / "huge.jpg", "wb") as stream:
        stream.truncate(MAX_ENCODED_BYTES + 1)  # sparse: takes no disk, and must take no memory
    data = contents(open_source(str(tmp_path)))
    assert data["a.jpg"] == b"a.jpg"
    assert data["huge.jpg"] == Failure("fetch", "536870913 bytes: the limit for an encoded image is 536870912")


def test_linked_image_is_read_and_a_link_to_nowhere_is_a_failure(tmp_path: Path):
    write(tmp_path, "photos/real.jpg", "elsewhere/far.jpg")
    (tmp_path / "photos" / "far.jpg").symlink_to(tmp_path / "elsewhere" / "far.jpg")
    (tmp_path / "photos" / "gone.jpg").symlink_to(tmp_path / "gone.jpg")
    data = contents(open_source(str(tmp_path / "photos")))
    assert data["far.jpg"] == b"elsewhere/far.jpg"
    assert isinstance(data["gone.jpg"], Failure)
    assert list(data) == ["far.jpg", "gone.jpg", "real.jpg"]


def test_folder_and_file_names_that_are_not_utf8_get_escaped_ids(tmp_path: Path):
    folder = os.path.join(os.fsencode(tmp_path), b"fotos\xff")
    os.mkdir(folder)
    with open(os.path.join(folder, b"caf\xe9.jpg"), "wb") as stream:
        stream.write(b"x")
    for uri in (os.fsdecode(folder), os.fsdecode(os.path.join(folder, b"caf\xe9.jpg"))):
        (record,) = records(open_source(uri))
        assert record == ImageRecord("caf\\xe9.jpg", f"{tmp_path}/fotos\\xff/caf\\xe9.jpg", b"x")


def test_plan_raises_when_the_folder_vanished(tmp_path: Path):
    write(tmp_path, "photos/a.jpg")
    source = open_source(str(tmp_path / "photos"))
    (tmp_path / "photos" / "a.jpg").unlink()
    (tmp_path / "photos").rmdir()
    with pytest.raises(StorageError, match="No such file"):
        shards(source)


# Tars.


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


def test_tar_without_images_is_a_shard_without_records(tmp_path: Path):
    assert contents(tar_source(tmp_path, tar_bytes({"a.txt": b""}))) == {}
    assert contents(tar_source(tmp_path, tar_bytes({}))) == {}


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


# What the two have in common.


@pytest.mark.parametrize("uri", ["photos", "photos/a.jpg", "tars", "tars/0.tar", "tars/*.tar", "tars/{0..1}.tar"])
def test_source_is_the_same_when_it_is_pickled_or_opened_by_its_uri(tmp_path: Path, uri: str):
    write(tmp_path, "photos/a.jpg", "photos/b.jpg")
    (tmp_path / "tars").mkdir()
    for name in ("0.tar", "1.tar"):
        (tmp_path / "tars" / name).write_bytes(tar_bytes(THREE))
    source = open_source(str(tmp_path / uri))
    assert source.uri == str(tmp_path / uri)
    for other in (pickle.loads(pickle.dumps(source)), open_source(source.uri)):
        assert other == source
        assert records(other) == records(source) != []


def test_relative_source_means_the_same_when_the_working_folder_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write(tmp_path, "photos/a.jpg")
    monkeypatch.chdir(tmp_path)
    source = open_source("photos")
    monkeypatch.chdir("/")
    assert contents(source) == {"a.jpg": b"photos/a.jpg"}


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("a.jpg", True),
        ("a/b.TIF", True),
        ("jpg", False),
        ("a.jpg.txt", False),
        (".a/b.jpg", False),
        ("a/.b.jpg", False),
    ],
)
def test_is_image_goes_by_extension_and_visibility(key: str, expected: bool):
    assert is_image(key) is expected
