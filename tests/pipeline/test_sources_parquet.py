"""Parquet files with images: layouts that are about, ids, shards, damage."""

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskmill.pipeline.errors import ObjectError, SourceError, StorageError
from maskmill.pipeline.records import Failure, Shard
from maskmill.pipeline.sources import ParquetImages, Source, open_source
from tests.pipeline.sources import FailingStorage, contents, hugging_face, parquet_bytes, records, shards, write

BYTES = [b"1" * 700, b"2" * 700, b"3" * 700]
NO_BYTES = Failure("fetch", "the row has no bytes")


def parquet_source(folder: Path, data: bytes, name: str = "a.parquet") -> Source:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
    return open_source(str(folder / name))


def test_hugging_face_layout_gives_ids_from_paths(tmp_path: Path):
    rows = [(b"1", "x.jpg"), (b"2", "y/./../z.png"), (b"3", None), (b"4", "x.jpg"), (b"5", ""), (b"6", "x.jpg")]
    source = parquet_source(tmp_path, hugging_face(rows))
    assert isinstance(source, ParquetImages)
    assert contents(source) == {
        "a.parquet/x.jpg": b"1",
        "a.parquet/y/z.png": b"2",
        "a.parquet/2": b"3",
        "a.parquet/x.jpg#2": b"4",
        "a.parquet/4": b"5",
        "a.parquet/x.jpg#3": b"6",
    }
    assert records(source)[3].source_uri == f"{tmp_path}/a.parquet#3"


def test_ids_are_unique_when_paths_look_like_numbers_of_rows_or_of_repeats(tmp_path: Path):
    paths = ["2", "x", None, "x", "x#2", "x", "1", None]
    source = parquet_source(tmp_path, hugging_face([(b"%d" % row, path) for row, path in enumerate(paths)]))
    ids = ["2", "x", "2#2", "x#2", "x#2#2", "x#3", "1", "7"]
    assert list(contents(source)) == [f"a.parquet/{image_id}" for image_id in ids]


def test_planning_stays_fast_when_all_rows_have_the_same_path(tmp_path: Path):
    source = parquet_source(tmp_path, hugging_face([(b"x", "image.jpg")] * 50_000))
    image_ids = [image_id for shard in shards(source) for image_id in shard.image_ids or ()]
    assert len(set(image_ids)) == 50_000
    assert image_ids[-1] == "a.parquet/image.jpg#50000"


@pytest.mark.parametrize(
    ("columns", "ids"),
    [
        ({"image": BYTES}, ["0", "1", "2"]),
        ({"image": pa.array(BYTES, pa.large_binary())}, ["0", "1", "2"]),
        ({"id": [1, 2, 3], "bytes": BYTES, "path": ["a", "b", "c"]}, ["a", "b", "c"]),
        ({"caption": ["", "", ""], "key": ["01", "02", "03"], "jpg": BYTES, "url": ["", "", ""]}, ["01", "02", "03"]),
        ({"PNG": BYTES, "key": [1, 2, 3]}, ["0", "1", "2"]),
        ({"jpg": [b"", b"", b""], "image": BYTES}, ["0", "1", "2"]),
        ({"photo": [{"bytes": data} for data in BYTES], "file_name": ["a", "b", "c"]}, ["a", "b", "c"]),
        ({"image": [{"bytes": data, "path": 7} for data in BYTES]}, ["0", "1", "2"]),
        ({"image": [{"path": "x", "bytes": data} for data in BYTES]}, ["x", "x#2", "x#3"]),
    ],
)
def test_columns_are_found_in_the_layouts_that_are_about(tmp_path: Path, columns: dict[str, Any], ids: list[str]):
    source = parquet_source(tmp_path, parquet_bytes(columns))
    assert contents(source) == {f"a.parquet/{name}": data for name, data in zip(ids, BYTES, strict=True)}


@pytest.mark.parametrize(
    "columns",
    [
        {"image": ["text"], "label": [1]},
        {"image": [{"bytes": "text", "path": "x"}]},
        {"image": [[b"x"]]},
        {"image": pa.array([b"x"]).dictionary_encode()},
        {"data": [b"x"]},
        {"url": ["https://example.org/a.jpg"]},
    ],
)
def test_file_is_refused_with_its_columns_when_none_holds_images(tmp_path: Path, columns: dict[str, Any]):
    with pytest.raises(SourceError, match=rf"no column has images.*{next(iter(columns))} \("):
        parquet_source(tmp_path, parquet_bytes(columns))


def test_column_that_is_there_twice_is_refused(tmp_path: Path):
    schema = pa.schema([("image", pa.binary()), ("image", pa.binary())])
    pq.write_table(pa.Table.from_arrays([pa.array([b"x"])] * 2, schema=schema), tmp_path / "a.parquet")
    with pytest.raises(SourceError, match="no column has images"):
        open_source(str(tmp_path / "a.parquet"))


def test_rows_without_bytes_are_failures(tmp_path: Path):
    source = parquet_source(tmp_path, hugging_face([(b"1", "a"), (None, "b"), None, (b"", "c"), (b"2", "d")]))
    data = contents(source)
    assert list(data) == [f"a.parquet/{name}" for name in ("a", "b", "2", "c", "d")]
    assert list(data.values()) == [b"1", NO_BYTES, NO_BYTES, NO_BYTES, b"2"]


def test_paths_that_are_not_utf8_get_escaped_ids(tmp_path: Path):
    paths = pa.array([b"caf\xe9.jpg", "日本.jpg".encode()]).view(pa.string())
    source = parquet_source(tmp_path, parquet_bytes({"image": BYTES[:2], "path": paths}))
    assert list(contents(source)) == ["a.parquet/caf\\xe9.jpg", "a.parquet/日本.jpg"]


@pytest.mark.parametrize(
    ("rows_per_group", "images_per_shard", "expected"),
    [
        (4, 4, [4, 4, 4, 4, 4]),  # a group each
        (4, 9, [8, 8, 4]),  # as many as fit
        (4, 100, [20]),
        (20, 4, [4, 4, 4, 4, 4]),  # pieces
        (20, 6, [6, 7, 7]),  # of about the same size, none smaller than was asked for
        (7, 4, [7, 7, 6]),  # whole where two pieces would be smaller
        (20, 1, [1] * 20),
    ],
)
def test_shards_follow_row_groups(tmp_path: Path, rows_per_group: int, images_per_shard: int, expected: list[int]):
    rows = [(b"%d" % row, None) for row in range(20)]
    source = parquet_source(tmp_path, hugging_face(rows, rows_per_group=rows_per_group))
    planned = shards(source, images_per_shard)
    assert [len(shard.image_ids or ()) for shard in planned] == expected
    assert [shard.index for shard in planned] == list(range(len(expected)))
    assert contents(source, images_per_shard) == {f"a.parquet/{row}": b"%d" % row for row in range(20)}


def test_shard_with_some_of_its_images_yields_just_these(tmp_path: Path):
    rows = [(b"%d" % row, f"{row}.jpg") for row in range(9)]
    source = parquet_source(tmp_path, hugging_face(rows, rows_per_group=3))
    (shard,) = shards(source)
    image_ids = ("a.parquet/1.jpg", "a.parquet/2.jpg", "a.parquet/8.jpg")
    retry = Shard(0, shard.uri, image_ids, retry=1, uris=shard.uris)
    assert [(record.image_id, record.data) for record in source.read(retry)] == list(
        zip(image_ids, [b"1", b"2", b"8"], strict=True)
    )


def test_folder_and_pattern_of_files(tmp_path: Path):
    for name in ("t-0.parquet", "t-1.parquet", "deep/t-0.parquet"):
        parquet_source(tmp_path, hugging_face([(name.encode(), "x.jpg")]), name)
    write(tmp_path, "README.md")
    names = ["deep/t-0.parquet", "t-0.parquet", "t-1.parquet"]
    assert contents(open_source(str(tmp_path))) == {f"{name}/x.jpg": name.encode() for name in names}
    for pattern in ("t-*.parquet", "t-{0..1}.parquet"):
        source = open_source(str(tmp_path / pattern))
        assert contents(source) == {f"{name}/x.jpg": name.encode() for name in names[1:]}
        assert pickle.loads(pickle.dumps(source)) == open_source(source.uri) == source


def test_files_that_tell_about_tars_or_images_are_left_alone(tmp_path: Path):
    about = parquet_bytes({"key": ["a"], "url": ["https://example.org/a.jpg"]})
    (tmp_path / "00000.parquet").write_bytes(about)
    with pytest.raises(SourceError, match=r"no Parquet files with images in this folder \(00000\.parquet has.* url"):
        open_source(str(tmp_path))
    write(tmp_path, "00000/a.jpg")
    assert list(contents(open_source(str(tmp_path)))) == ["00000/a.jpg"]


def test_folder_of_images_in_two_ways_is_refused(tmp_path: Path):
    (tmp_path / "a.parquet").write_bytes(hugging_face([(b"x", None)]))
    write(tmp_path, "b.jpg")
    with pytest.raises(SourceError, match="both images and Parquet files"):
        shards(open_source(str(tmp_path)))


def test_planning_names_the_file_that_is_damaged_or_has_no_images(tmp_path: Path):
    (tmp_path / "a.parquet").write_bytes(hugging_face([(b"x", None)]))
    for data, message in [(b"PAR1", "b.parquet: damaged"), (parquet_bytes({"x": [1]}), "b.parquet: no column")]:
        (tmp_path / "b.parquet").write_bytes(data)
        with pytest.raises(SourceError, match=message):
            shards(open_source(str(tmp_path)))


# Damage after the plan.


def test_rows_are_failures_when_the_file_is_gone_or_another(tmp_path: Path):
    source = parquet_source(tmp_path, hugging_face([(data, None) for data in BYTES]))
    (shard,) = shards(source)
    path = tmp_path / "a.parquet"
    for data, reason in [
        (None, "No such file"),
        (b"PAR1", "cannot be read further"),
        (parquet_bytes({"x": [1, 2, 3]}), "no column has images"),
    ]:
        path.unlink()
        if data is not None:
            path.write_bytes(data)
        read = list(source.read(shard))
        assert [record.image_id for record in read] == list(shard.image_ids or ())
        assert all(isinstance(record.data, Failure) and reason in record.data.reason for record in read)
        path.write_bytes(b"")
    path.write_bytes(hugging_face([(BYTES[0], None)]))
    first, *others = source.read(shard)
    assert first.data == BYTES[0]
    assert all(isinstance(record.data, Failure) and "this row is missing" in record.data.reason for record in others)


def test_other_row_groups_stand_when_a_page_is_damaged(tmp_path: Path):
    rows = [(os.urandom(500), None) for _ in range(6)]
    options = {"compression": "none", "write_page_checksum": True, "use_dictionary": False, "write_statistics": False}
    damaged = bytearray(hugging_face(rows, rows_per_group=2, **options))
    third = rows[2][0]
    assert third is not None
    damaged[damaged.index(third) + 100] ^= 1
    data = list(contents(parquet_source(tmp_path, bytes(damaged))).values())
    assert data[:2] == [rows[0][0], rows[1][0]]
    assert data[4:] == [rows[4][0], rows[5][0]]
    assert all(isinstance(failure, Failure) and "CRC" in failure.reason for failure in data[2:4])


@pytest.mark.parametrize("error", [StorageError, ObjectError])
def test_only_trouble_with_the_store_leaves_read(tmp_path: Path, error: type[StorageError]):
    rows = [(os.urandom(100_000), None) for _ in range(8)]
    source = parquet_source(tmp_path, hugging_face(rows, rows_per_group=1, compression="none"))
    (shard,) = shards(source)
    for bytes_left in range(0, 900_000, 90_000):
        failing = ParquetImages(
            FailingStorage(tmp_path, bytes_left, error), str(tmp_path / "a.parquet"), ("a.parquet",)
        )
        if error is StorageError:
            with pytest.raises(StorageError, match="the store is gone"):
                list(failing.read(shard))
        else:
            data = [record.data for record in failing.read(shard)]
            assert len(data) == 8
            assert Failure("fetch", "the store is gone") in data


_READ_DAMAGED = """
import pathlib, random, sys
from maskmill.pipeline.errors import SourceError
from maskmill.pipeline.sources import open_source
from tests.pipeline.sources import hugging_face
rows = [(bytes([row]) * 40, f"{row}.jpg" * 3) for row in range(40)]
random = random.Random(0)
path = pathlib.Path(sys.argv[1]) / "a.parquet"
outcomes = {}
for trial in range(int(sys.argv[2])):
    options = dict(
        compression=["none", "snappy", "zstd"][trial % 3],
        use_dictionary=trial % 2 == 0,
        rows_per_group=[7, 40][trial % 2],
        data_page_version=["1.0", "2.0"][trial % 5 == 0],
    )
    data = bytearray(hugging_face(rows, **options))
    if trial % 4 == 0:
        data = data[: random.randrange(len(data))]
    elif trial % 4 == 1:
        footer = int.from_bytes(data[-8:-4], "little")
        data[len(data) - 8 - random.randrange(footer)] ^= 1 << random.randrange(8)
    else:
        for _ in range(trial % 4):
            data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    path.write_bytes(data)
    try:
        source = open_source(str(path))
        planned = list(source.plan(7))
    except SourceError as error:
        assert "\\n" not in str(error), error
        outcomes["refused"] = outcomes.get("refused", 0) + 1
        continue
    for shard in planned:
        read = list(source.read(shard))
        assert [record.image_id for record in read] == list(shard.image_ids)
    outcomes["read"] = outcomes.get("read", 0) + 1
print(outcomes)
"""


def test_damaged_files_never_end_the_process(tmp_path: Path):
    """In a process of its own, so that its end is a failure of this test and not the end of all tests."""
    done = subprocess.run(
        [sys.executable, "-c", _READ_DAMAGED, str(tmp_path), "400"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "read" in done.stdout
    assert "refused" in done.stdout
