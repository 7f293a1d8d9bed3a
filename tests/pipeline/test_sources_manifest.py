"""Manifests: formats, addresses, ids, bad lines."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from maskmill.pipeline.errors import SourceError, StorageError
from maskmill.pipeline.plan import PLAN_KEY, encode_plan, read_plan
from maskmill.pipeline.records import Failure, Shard
from maskmill.pipeline.sources import Manifest, Source, open_source
from maskmill.pipeline.storage import LocalStorage
from tests.pipeline.sources import FailingStorage, contents, parquet_bytes, records, shards, write


def manifest(folder: Path, rows: list[dict[str, Any]], kind: str = "csv") -> Source:
    """A manifest of rows that all have the same columns."""
    path = folder / f"list.{kind}"
    match kind:
        case "csv":
            lines = [",".join(rows[0]), *(",".join(f'"{value}"' for value in row.values()) for row in rows)]
            path.write_text("\n".join(lines) + "\n")
        case "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case _:
            path.write_bytes(parquet_bytes({name: [row[name] for row in rows] for name in rows[0]}))
    return open_source(str(path))


def manifest_of_bytes(folder: Path, data: bytes, name: str = "list.csv") -> Source:
    (folder / name).write_bytes(data)
    return open_source(str(folder / name))


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_manifest_yields_what_it_lists_in_order(tmp_path: Path, kind: str):
    write(tmp_path, "lists/b.jpg", "lists/a.jpg", "far/c.jpg", "lists/no-extension")
    absolute = str(tmp_path / "far" / "c.jpg")
    rows = [{"uri": uri, "label": "x"} for uri in ("b.jpg", "../far/c.jpg", "no-extension", absolute, "./a.jpg")]
    source = manifest(tmp_path / "lists", rows, kind)
    assert isinstance(source, Manifest)
    assert [(record.image_id, record.source_uri, record.data) for record in records(source, 2)] == [
        ("b.jpg", f"{tmp_path}/lists/b.jpg", b"lists/b.jpg"),
        ("far/c.jpg", f"{tmp_path}/lists/../far/c.jpg", b"far/c.jpg"),
        ("no-extension", f"{tmp_path}/lists/no-extension", b"lists/no-extension"),
        (absolute[1:], absolute, b"far/c.jpg"),
        ("a.jpg", f"{tmp_path}/lists/a.jpg", b"lists/a.jpg"),
    ]
    assert [shard.index for shard in shards(source, 2)] == [0, 1, 2]
    assert pickle.loads(pickle.dumps(source)) == open_source(source.uri) == source


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_image_id_is_the_column_where_there_is_something_in_it(tmp_path: Path, kind: str):
    write(tmp_path, "a.jpg", "b.jpg")
    rows = [{"image_id": "Ä 1\n", "uri": "a.jpg"}, {"image_id": "", "uri": "b.jpg"}, {"image_id": "x", "uri": "b.jpg"}]
    assert contents(manifest(tmp_path, rows, kind)) == {"Ä 1\n": b"a.jpg", "b.jpg": b"b.jpg", "x": b"b.jpg"}


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_image_id_may_be_an_integer(tmp_path: Path, kind: str):
    write(tmp_path, "a.jpg")
    assert list(contents(manifest(tmp_path, [{"image_id": 17, "uri": "a.jpg"}], kind))) == ["17"]


def test_csv_may_be_as_spreadsheets_write_it(tmp_path: Path):
    write(tmp_path, "a, b.jpg", "c.jpg")
    source = manifest_of_bytes(tmp_path, b'\xef\xbb\xbflabel, uri\r\n1,"a, b.jpg"\r\n\r\n2,c.jpg')
    assert list(contents(source)) == ["a, b.jpg", "c.jpg"]


def test_shard_is_read_after_its_manifest_is_gone(tmp_path: Path):
    write(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    source = manifest(tmp_path, [{"uri": f"{name}.jpg", "image_id": name} for name in "abc"])
    out = LocalStorage(tmp_path)
    out.create(PLAN_KEY, encode_plan(source.planned, source.plan(100)))
    (tmp_path / "list.csv").unlink()
    (shard,) = read_plan(out)
    retry = Shard(0, shard.uri, ("a", "c"), retry=1, uris=shard.uris)
    assert [(record.image_id, record.data) for record in source.read(retry)] == [("a", b"a.jpg"), ("c", b"c.jpg")]


def test_image_that_cannot_be_read_is_a_failure(tmp_path: Path):
    write(tmp_path, "a.jpg", ".hidden.jpg", ".deep/er/b.jpg")
    os.mkdir(tmp_path / "folder")
    uris = ["a.jpg", "gone.jpg", "/no/such/folder/a.jpg", "folder", ".hidden.jpg", ".deep/er/b.jpg", "nul\0.jpg"]
    data = contents(manifest(tmp_path, [{"uri": uri} for uri in uris], "jsonl"))
    assert [data["a.jpg"], data[".deep/er/b.jpg"]] == [b"a.jpg", b".deep/er/b.jpg"]
    reasons = {image_id: value.reason for image_id, value in data.items() if isinstance(value, Failure)}
    assert [image_id for image_id in data if image_id in reasons] == [
        "gone.jpg", "no/such/folder/a.jpg", "folder", ".hidden.jpg", "nul\0.jpg",
    ]  # fmt: skip
    assert "No such file" in reasons["gone.jpg"]
    assert "No such file" in reasons["no/such/folder/a.jpg"]
    assert "Is a directory" in reasons["folder"]
    assert "empty or hidden" in reasons[".hidden.jpg"]
    assert "\0" not in reasons["nul\0.jpg"]


def test_path_leads_where_it_leads_on_disk_when_it_goes_through_a_link(tmp_path: Path):
    write(tmp_path, "far/away/list.csv", "far/x.jpg", "x.jpg")
    (tmp_path / "link").symlink_to(tmp_path / "far" / "away")
    source = manifest(tmp_path, [{"uri": "link/../x.jpg"}])
    assert contents(source) == {"link/x.jpg": b"far/x.jpg"}


def test_only_trouble_with_the_store_leaves_read(tmp_path: Path):
    write(tmp_path, "a.jpg")
    (shard,) = shards(manifest(tmp_path, [{"uri": "a.jpg"}]))
    failing = Manifest(FailingStorage(tmp_path), str(tmp_path / "list.csv"))
    with pytest.raises(StorageError, match="the store is gone"):
        list(failing.read(shard))


def test_repeated_ids_are_refused_by_name(tmp_path: Path):
    rows = [{"uri": f"{number}.jpg"} for number in [*range(50), 7, 8, 9, 7]]
    with pytest.raises(SourceError) as caught:
        shards(manifest(tmp_path, rows))
    assert "7.jpg (9 and 52), 8.jpg (10 and 53), 9.jpg (11 and 54): leave them out" in str(caught.value)
    with pytest.raises(SourceError, match=r"a\.jpg"):
        shards(manifest(tmp_path, [{"uri": "a.jpg"}, {"uri": "../a.jpg"}]))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "line 1: the header has no column uri"),
        (b"url\na.jpg\n", "line 1: the header has no column uri"),
        (b"uri,uri\na,b\n", "line 1: the header has no column uri"),
        (b"uri\n", "lists no images"),
        (b"uri,label\na.jpg,1\nb.jpg\n", "line 3: 1 values, but the header has 2"),
        (b"uri,label\na.jpg,1\n,2\n", "line 3: no uri"),
        (b"uri\na.jpg\ncaf\xe9.jpg\n", "line 3: not UTF-8"),
        (b'uri\n"a.jpg\nb.jpg\n', "line 3: not csv"),
        (b'uri\n"a"b.jpg\n', "line 2: not csv"),
        (b"uri\n" + b"x" * 2_000_000, "line 2: longer than"),
        (b"uri\nhttp://user:secret@example.org/a.jpg\n", "line 2: http:// is not supported"),
        (b"uri\na.jpg\nftp://example.org/a.jpg\n", "line 3: ftp:// is not supported"),
        (b"uri\ns3://bucket\n", "line 2: s3://bucket is a bucket, not an object"),
        (b"uri\ns3://user:secret@bucket/a.jpg\n", "put an endpoint or credentials in the environment"),
        (b"uri\n../..\n", "line 2: ../.. names no file"),
    ],
)
def test_bad_csv_is_one_line_with_its_number(tmp_path: Path, data: bytes, message: str):
    with pytest.raises(SourceError) as caught:
        shards(manifest_of_bytes(tmp_path, data))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"9" * 10_000, "not JSON"),
        (b"7", 'not an object with a "uri"'),
        (b'{"url": "a.jpg"}', 'not an object with a "uri"'),
        (b'{"uri": null}', "no uri"),
        (b'{"uri": ""}', "no uri"),
        (b'{"uri": ["a.jpg"]}', "no uri"),
        (b'{"uri": "a.jpg", "image_id": true}', "the image_id is not text"),
        (b'{"uri": "a.jpg", "image_id": {}}', "the image_id is not text"),
        (b'{"uri": "\\ud800.jpg"}', "the text is not valid Unicode"),
        (b'{"uri": "\xff.jpg"}', "not UTF-8"),
    ],
)
def test_bad_jsonl_is_one_line_with_its_number(tmp_path: Path, line: bytes, message: str):
    with pytest.raises(SourceError) as caught:
        shards(manifest_of_bytes(tmp_path, b'{"uri": "x.jpg"}\n\n' + line + b"\n", "list.jsonl"))
    assert f"line 3: {message}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"uri": ["a.jpg", None]}, "row 1: no uri"),
        ({"uri": ["a.jpg", ""]}, "row 1: no uri"),
        ({"uri": pa.array([b"\xff"]).view(pa.string())}, "row 0: not UTF-8"),
        ({"uri": ["a.jpg"], "image_id": [1.5]}, "image_id of strings or integers"),
        ({"uri": [b"a.jpg"]}, "or the addresses of a manifest (uri)"),
        ({"url": ["a.jpg"]}, "or the addresses of a manifest (uri)"),
    ],
)
def test_bad_parquet_manifest_is_one_line(tmp_path: Path, columns: dict[str, Any], message: str):
    with pytest.raises(SourceError) as caught:
        shards(manifest_of_bytes(tmp_path, parquet_bytes(columns), "list.parquet"))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_parquet_file_with_images_and_addresses_is_images(tmp_path: Path):
    columns = {"uri": ["https://example.org/a.jpg"], "image": [b"x"]}
    assert contents(manifest_of_bytes(tmp_path, parquet_bytes(columns), "a.parquet")) == {"a.parquet/0": b"x"}


def test_manifest_in_a_folder_of_images_is_left_alone(tmp_path: Path):
    write(tmp_path, "a.jpg", "metadata.csv")
    assert list(contents(open_source(str(tmp_path)))) == ["a.jpg"]
