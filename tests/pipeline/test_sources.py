"""What all sources have in common, and which source an address means."""

import pickle
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import pytest

from maskmill.pipeline.errors import SourceError, StorageError
from maskmill.pipeline.sources import ImageFolder, Manifest, is_image, open_source
from maskmill.pipeline.storage import LocalStorage
from tests.pipeline.sources import contents, records, shards, tar_bytes, write


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


@pytest.mark.parametrize("uri", ["photos", "photos/a.jpg", "tars", "tars/0.tar", "tars/*.tar", "tars/{0..1}.tar"])
def test_source_is_the_same_when_it_is_pickled_or_opened_by_its_uri(tmp_path: Path, uri: str):
    write(tmp_path, "photos/a.jpg", "photos/b.jpg")
    (tmp_path / "tars").mkdir()
    for name in ("0.tar", "1.tar"):
        (tmp_path / "tars" / name).write_bytes(tar_bytes({"a.jpg": b"x"}))
    source = open_source(str(tmp_path / uri))
    assert source.uri == str(tmp_path / uri)
    for other in (pickle.loads(pickle.dumps(source)), open_source(source.uri)):
        assert other == source
        assert records(other) == records(source) != []


@dataclass(frozen=True)
class Together(LocalStorage):
    """Opens nothing before two objects are asked for."""

    asked: threading.Barrier = field(default_factory=lambda: threading.Barrier(2))

    def open(self, key: str) -> BinaryIO:
        self.asked.wait(60)
        return super().open(key)


@pytest.mark.parametrize("name", ["", "list.csv"])
def test_images_that_are_objects_of_their_own_are_fetched_at_once(tmp_path: Path, name: str):
    write(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "list.csv").write_text("uri\na.jpg\nb.jpg\n")
    source = open_source(str(tmp_path / name))
    assert isinstance(source, ImageFolder | Manifest)
    (shard,) = shards(source)
    read = replace(source, storage=Together(tmp_path)).read(shard)
    assert {record.image_id: record.data for record in read} == {"a.jpg": b"a.jpg", "b.jpg": b"b.jpg"}


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
