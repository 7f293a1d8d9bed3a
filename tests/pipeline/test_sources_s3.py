"""Each kind of source on S3: moto's server, with and without faults on the way."""

import gzip
import logging
import os
import pickle
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from maskmill.pipeline.errors import SourceError, StorageError
from maskmill.pipeline.records import Failure
from maskmill.pipeline.sources import ImageFolder, NameFilter, ParquetImages, Source, WebDatasetTars, open_source
from maskmill.pipeline.storage.s3 import S3Storage
from testing.s3_servers import HASTE, Fault, FaultProxy, MotoServer, random_faults
from tests.pipeline.sources import contents, hugging_face, parquet_bytes, records, shards, tar_bytes

pytestmark = pytest.mark.s3

Put = Callable[[dict[str, bytes]], str]


@pytest.fixture
def put(bucket: str, moto: MotoServer, monkeypatch: pytest.MonkeyPatch) -> Put:
    """Puts objects into a new bucket, and returns its address."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", moto.url)

    def put(objects: dict[str, bytes]) -> str:
        import boto3.session

        client = boto3.session.Session().client("s3", endpoint_url=moto.url)
        for key, data in objects.items():
            client.put_object(Bucket=bucket, Key=key, Body=data)
        return f"s3://{bucket}"

    return put


def test_prefix_yields_its_images_with_relative_ids(put: Put):
    names = ["A.JPG", "a b/ü#?%41+.png", "a/1.jpg", "caf\\xe9.jpg", "cafe\u0301.jpg", "café.jpg", "日本/写真.bmp"]
    address = put({f"photos/{name}": name.encode() for name in names} | {"photos2/x.jpg": b"", "photos/a.txt": b""})
    for uri in (f"{address}/photos", f"{address}/photos/"):
        source = open_source(uri)
        assert source.uri == f"{address}/photos"
        assert contents(source, images_per_shard=3) == {name: name.encode() for name in names}
    assert records(source)[0].source_uri == f"{address}/photos/A.JPG"
    assert list(contents(open_source(address))) == [*(f"photos/{name}" for name in sorted(names)), "photos2/x.jpg"]


def test_keys_that_are_no_paths_are_in_no_plan(put: Put):
    keys = ["p/", "p//a.jpg", "p/../a.jpg", "p/./a.jpg", "p/.hidden/a.jpg", "p/folder.jpg/", "p/a.jpg"]
    assert list(contents(open_source(put(dict.fromkeys(keys, b"")) + "/p"))) == ["a.jpg"]


def test_rubbish_and_patterns_are_as_on_disk(put: Put, caplog: pytest.LogCaptureFixture):
    members = dict.fromkeys(["photos/x.jpg", "masks/x.png", "x.seg.png", "__MACOSX/._x.jpg"], b"")
    address = put(
        {
            **dict.fromkeys(["p/a.jpg", "p/a.seg.png", "p/@eaDir/a.jpg/M.jpg", "p/@eaDir/a.jpg/S.jpg"], b""),
            **dict.fromkeys(["p/._a.jpg", "p/old/_run.json", "p/old/preview.jpg", "p/masks/a.png", "p/x/b.jpg"], b""),
            "tars/a.tar": tar_bytes(members),
        }
    )
    with caplog.at_level(logging.WARNING):
        assert list(contents(open_source(f"{address}/p", NameFilter(exclude=("masks",))))) == ["a.jpg", "x/b.jpg"]
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{address}/p: left out 7 files or folders "
        "(@eaDir: 2, outputs of maskmill: 2, hidden: 1, *.seg.png: 1, matched by --exclude: 1)"
    )
    source = open_source(f"{address}/tars", NameFilter(include=("photos",)))
    left_out: Counter[str] = Counter()
    assert [record.image_id for record in source.read(shards(source)[0], left_out)] == ["a.tar/photos/x.jpg"]
    assert left_out == {"*.seg.png": 1, "__MACOSX": 1, "not matched by --include": 1}
    with pytest.raises(SourceError, match=r"no images .* with --include '\*\.gif'; left out 9 files"):
        open_source(f"{address}/p", NameFilter(include=("*.gif",)))


def test_concatenated_tars_are_read_to_the_end(put: Put):
    first, second = tar_bytes({"a.jpg": b"1"}), tar_bytes({"b.jpg": b"2"})
    address = put({"a.tar": first + second, "b.tar.gz": gzip.compress(first) + gzip.compress(second)})
    expected = {"a.tar/a.jpg": b"1", "a.tar/b.jpg": b"2", "b.tar.gz/a.jpg": b"1", "b.tar.gz/b.jpg": b"2"}
    assert contents(open_source(address)) == expected


def test_one_object_is_a_source(put: Put):
    address = put(
        {
            "x/a.jpg": b"1",
            "x/a.tar": tar_bytes({"b.jpg": b"2"}),
            "x/a.parquet": hugging_face([(b"3", "c.jpg")]),
            "x/list.csv": b"uri\na.jpg\n",
        }
    )
    for name, expected in {
        "a.jpg": {"a.jpg": b"1"},
        "a.tar": {"a.tar/b.jpg": b"2"},
        "a.parquet": {"a.parquet/c.jpg": b"3"},
        "list.csv": {"a.jpg": b"1"},
    }.items():
        source = open_source(f"{address}/x/{name}")
        assert source.uri == f"{address}/x/{name}"
        assert contents(source) == expected
        for other in (pickle.loads(pickle.dumps(source)), open_source(source.uri)):
            assert other == source


@pytest.mark.parametrize("pattern", ["t-*.tar", "t-{00..01}.tar", "t-0[01].tar"])
def test_pattern_selects_tars_of_one_prefix(put: Put, pattern: str):
    keys = ["x/t-00.tar", "x/t-01.tar", "x/t-0/t-02.tar", "x/u-00.tar"]
    address = put({key: tar_bytes({"a.jpg": key.encode()}) for key in keys})
    source = open_source(f"{address}/x/{pattern}")
    assert contents(source) == {"t-00.tar/a.jpg": b"x/t-00.tar", "t-01.tar/a.jpg": b"x/t-01.tar"}
    assert open_source(source.uri) == source
    with pytest.raises(SourceError, match=r"2 of these do not exist, such as t-02\.tar"):
        open_source(f"{address}/x/t-{{00..03}}.tar")


def test_prefixes_of_tars_and_of_parquet_files(put: Put):
    address = put(
        {
            "tars/a.tar": tar_bytes({"x.jpg": b"1"}, "w:gz"),
            "tars/b/c.tar": tar_bytes({"x.jpg": b"2"}),
            "rows/b.parquet": hugging_face([(b"4", None)]),
            "rows/a/a.parquet": parquet_bytes({"jpg": [b"3"], "key": ["x"]}),
        }
    )
    assert contents(open_source(f"{address}/tars")) == {"a.tar/x.jpg": b"1", "b/c.tar/x.jpg": b"2"}
    assert contents(open_source(f"{address}/rows")) == {"a/a.parquet/x": b"3", "b.parquet/0": b"4"}


def test_tar_below_another_is_refused_and_one_in_a_folder_of_such_a_name_is_not(put: Put):
    address = put({"x/a.tar/b.tar": tar_bytes({"x.jpg": b"1"})})
    assert contents(open_source(f"{address}/x")) == {"a.tar/b.tar/x.jpg": b"1"}
    put({"x/a.tar": tar_bytes({"b.tar/x.jpg": b"2"})})
    with pytest.raises(SourceError, match="is below"):
        shards(open_source(f"{address}/x"))


def test_manifest_mixes_stores(put: Put, tmp_path: Path):
    (tmp_path / "disk.jpg").write_bytes(b"disk")
    address = put({"far/a b.jpg": b"far", "lists/near.jpg": b"near"})
    lines = ["uri", f"{address}/far/a b.jpg", str(tmp_path / "disk.jpg"), "../lists/near.jpg", "near.jpg"]
    lines += [f"{address}/far/gone.jpg", f"{address}/far//a.jpg"]
    put({"lists/list.csv": "\n".join([*lines[:3], *lines[4:]]).encode()})
    bucket = address.removeprefix("s3://")
    data = contents(open_source(f"{address}/lists/list.csv"), images_per_shard=2)
    assert data[f"{bucket}/far/a b.jpg"] == b"far"
    assert data[str(tmp_path / "disk.jpg")[1:]] == b"disk"
    assert data["near.jpg"] == b"near"
    gone, no_key = data[f"{bucket}/far/gone.jpg"], data[f"{bucket}/far/a.jpg"]
    assert isinstance(gone, Failure)
    assert isinstance(no_key, Failure)
    assert "empty or hidden" in no_key.reason


def test_nothing_there_is_one_clear_error(put: Put):
    address = put({"x/notes.txt": b""})
    with pytest.raises(SourceError, match="no such file or folder"):
        open_source(f"{address}/y")
    with pytest.raises(SourceError, match="no images"):
        open_source(f"{address}/x")
    with pytest.raises(SourceError, match="neither an image"):
        open_source(f"{address}/x/notes.txt")
    with pytest.raises(StorageError, match="no-such-bucket"):
        open_source("s3://no-such-bucket/x")


def test_object_that_vanished_is_a_failure(put: Put, moto: MotoServer):
    address = put({"a/a.jpg": b"1", "b/a.tar": tar_bytes({}), "c/a.parquet": hugging_face([(b"1", "x")])})
    import boto3.session

    client = boto3.session.Session().client("s3", endpoint_url=moto.url)
    for name, key, image_id in [("a", "a.jpg", "a.jpg"), ("b", "a.tar", "a.tar"), ("c", "a.parquet", "a.parquet/x")]:
        source = open_source(f"{address}/{name}")
        (shard,) = shards(source)
        client.delete_object(Bucket=address.removeprefix("s3://"), Key=f"{name}/{key}")
        (record,) = source.read(shard)
        assert record.image_id == image_id
        assert isinstance(record.data, Failure)


def test_faults_on_the_way_change_nothing(put: Put, proxy: FaultProxy):
    photographs = {f"{number}.jpg": os.urandom(300_000) for number in range(6)}
    address = put(
        {
            **{f"photos/{name}": data for name, data in photographs.items()},
            "tars/a.tar": tar_bytes(photographs),
            "rows/a.parquet": hugging_face([(data, name) for name, data in photographs.items()], rows_per_group=2),
        }
    )
    proxy.behave(random_faults(0.2, seed=5))
    bucket = S3Storage(address.removeprefix("s3://"), endpoint=proxy.url, patience=HASTE)
    sources: list[Source] = [
        ImageFolder(replace(bucket, prefix="photos"), ""),
        WebDatasetTars(replace(bucket, prefix="tars"), ""),
        ParquetImages(replace(bucket, prefix="rows"), ""),
    ]
    for source, prefix in zip(sources, ("", "a.tar/", "a.parquet/"), strict=True):
        assert contents(source) == {f"{prefix}{name}": data for name, data in photographs.items()}
    assert next(proxy.numbers) > 15


def test_store_that_is_gone_is_an_error_and_not_failed_images(put: Put, proxy: FaultProxy):
    photographs = {f"{number}.jpg": os.urandom(3_000_000) for number in range(2)}
    address = put(
        {
            "tars/a.tar": tar_bytes(photographs),
            "gz/a.tar": tar_bytes(photographs, "w:gz"),
            "rows/a.parquet": hugging_face([(data, name) for name, data in photographs.items()], rows_per_group=1),
        }
    )
    patience = replace(HASTE, total=0.2)
    bucket = S3Storage(address.removeprefix("s3://"), endpoint=proxy.url, patience=patience)
    sources: list[Source] = [
        WebDatasetTars(replace(bucket, prefix="tars"), ""),
        WebDatasetTars(replace(bucket, prefix="gz"), ""),
        ParquetImages(replace(bucket, prefix="rows"), ""),
    ]
    for source in sources:
        proxy.behave()
        (shard,) = shards(source)
        for cut in range(3):  # so many answers end in the middle, and then there are none
            proxy.behave(lambda request, cut=cut: Fault.SHORT_BODY if request.number <= cut else Fault.SLOW_DOWN)
            with pytest.raises(StorageError, match="SlowDown"):
                list(source.read(shard))


def test_large_tar_is_streamed(put: Put, proxy: FaultProxy):
    address = put({"a.tar": tar_bytes({f"{number}.jpg": bytes(2_000_000) for number in range(20)})})
    source = WebDatasetTars(S3Storage(address.removeprefix("s3://"), endpoint=proxy.url), "", ("a.tar",))
    (shard,) = shards(source)
    assert sum(len(record.data) for record in source.read(shard) if isinstance(record.data, bytes)) == 40_000_000
    assert next(proxy.numbers) <= 3, "one request for all of it"
