"""The table of address schemes: a scheme that can only be read is enough for a source."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pytest

from maskmill.pipeline.errors import StorageError
from maskmill.pipeline.sources import open_planned, open_source
from maskmill.pipeline.storage import LocalStorage, Skip, StoredObject, open_readable, open_storage
from maskmill.pipeline.storage.opening import SCHEMES, Scheme


@dataclass(frozen=True)
class Archive:
    """A read-only store: archive://PATH has the files of /PATH."""

    uri: str

    def _folder(self) -> LocalStorage:
        return LocalStorage(Path(self.uri.removeprefix("archive:/")))

    def list(self, prefix: str = "", skip: Skip = lambda key: False) -> Iterator[StoredObject]:
        return self._folder().list(prefix, skip)

    def read(self, key: str) -> bytes:
        return self._folder().read(key)

    def open(self, key: str) -> BinaryIO:
        return self._folder().open(key)

    def exists(self, key: str) -> bool:
        return self._folder().exists(key)


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(SCHEMES, "archive", Scheme("archive://path", Archive))
    for name in ("a.jpg", "b/c.png"):
        path = tmp_path / "photographs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return f"archive:/{tmp_path}/photographs"


def test_images_are_read_when_their_store_can_only_be_read(archive: str):
    source = open_source(archive)
    (shard,) = source.plan(2)
    expected = [(name, f"{archive}/{name}", name.encode()) for name in ("a.jpg", "b/c.png")]
    for again in (source, open_planned(source.planned)):
        assert [(record.image_id, record.source_uri, record.data) for record in again.read(shard)] == expected


def test_manifest_lists_images_of_a_store_that_can_only_be_read(archive: str, tmp_path: Path):
    (tmp_path / "list.csv").write_text(f"uri\n{archive}/a.jpg\n")
    source = open_source(str(tmp_path / "list.csv"))
    (shard,) = source.plan(2)
    assert [record.data for record in source.read(shard)] == [b"a.jpg"]


def test_output_is_refused_when_its_store_can_only_be_read(archive: str):
    with pytest.raises(StorageError, match=r"^archive:// can only be read; give a path or s3://bucket/prefix$"):
        open_storage(archive)


def test_unknown_scheme_is_answered_with_the_schemes_of_the_table(archive: str):
    with pytest.raises(
        StorageError, match=r"^gs:// is not supported; give a path, s3://bucket/prefix or archive://path$"
    ):
        open_readable("gs://bucket")
