"""Images in folders. The "images" here are any bytes: sources do not decode."""

import logging
import os
from pathlib import Path

import pytest

from maskmill.pipeline.errors import StorageError
from maskmill.pipeline.ledger import RUN_KEY
from maskmill.pipeline.plan import PLAN_KEY
from maskmill.pipeline.records import Failure, ImageRecord
from maskmill.pipeline.sources import MAX_ENCODED_BYTES, ImageFolder, open_source
from tests.pipeline.sources import FailingStorage, contents, records, shards, write


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
    assert "left out 6 files or folders (hidden: 2, .txt: 2, no extension: 1, .json: 1)" in caplog.text


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


def test_names_that_differ_in_little_are_different_images(tmp_path: Path):
    names = [
        "a.jpg",
        "A.jpg",
        "a.JPG",
        " a.jpg",
        "a .jpg",
        "a\n.jpg",
        "caf\u00e9.jpg",
        "cafe\u0301.jpg",
    ]
    write(tmp_path, *names)
    assert contents(open_source(str(tmp_path)), images_per_shard=2) == {name: name.encode() for name in names}


def test_plan_raises_when_the_folder_vanished(tmp_path: Path):
    write(tmp_path, "photos/a.jpg")
    source = open_source(str(tmp_path / "photos"))
    (tmp_path / "photos" / "a.jpg").unlink()
    (tmp_path / "photos").rmdir()
    with pytest.raises(StorageError, match="No such file"):
        shards(source)


def test_only_trouble_with_the_store_leaves_read(tmp_path: Path):
    write(tmp_path, "a.jpg")
    (shard,) = shards(open_source(str(tmp_path)))
    with pytest.raises(StorageError, match="the store is gone"):
        list(ImageFolder(FailingStorage(tmp_path), str(tmp_path)).read(shard))


def test_linked_folder_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    write(tmp_path, "photos/a.jpg", "disk2/b.jpg", "disk2/deep/c.jpg")
    (tmp_path / "photos" / "more").symlink_to(tmp_path / "disk2")
    (tmp_path / "photos" / "again").symlink_to(tmp_path / "disk2")
    (tmp_path / "disk2" / "loop").symlink_to(tmp_path / "photos")
    expected = {"a.jpg": b"photos/a.jpg", "again/b.jpg": b"disk2/b.jpg", "again/deep/c.jpg": b"disk2/deep/c.jpg"}
    with caplog.at_level(logging.WARNING):
        assert contents(open_source(str(tmp_path / "photos"))) == expected
    assert (
        "2 linked folders were left out because they are listed under another name, such as again/loop" in caplog.text
    )


def test_output_of_a_run_is_no_image_when_it_lies_below_the_source(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    write(tmp_path, "photos/a.jpg", "photos/old/overlays.jpg", f"photos/old/{RUN_KEY}", "photos/z.jpg")
    write(tmp_path, f"out/{PLAN_KEY}", "out/preview/a.png", "out/preview.jpg")
    (tmp_path / "photos" / "results").symlink_to(tmp_path / "out")
    with caplog.at_level(logging.WARNING):
        assert list(contents(open_source(str(tmp_path / "photos")))) == ["a.jpg", "z.jpg"]
    assert "(outputs of maskmill: 5)" in caplog.text
