"""`maskmill query` and `run.query`: SQL over a run on disk and in S3, with functions on masks."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import cv2
import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
from pycocotools import mask as coco

import maskmill
from maskmill.filters import rle
from maskmill.jobs.cli import main
from maskmill.pipeline.finished import RunImage
from maskmill.pipeline.parts import masks_key
from maskmill.pipeline.storage import open_storage
from maskmill.pipeline.storage.s3 import S3Storage
from maskmill.tables.functions import FUNCTIONS
from maskmill.tables.query import QueryError
from maskmill.tables.run import Run
from testing.s3_servers import FaultProxy, MotoServer, Request
from testing.synthetic_runs import mask_pool, write_run
from tests.runs import begin

SIZE = "image_height, image_width"


def test_views_are_the_tables_of_the_run(out: str):
    run = maskmill.open_run(out)
    assert run.query("SELECT status, count(*) FROM images GROUP BY 1 ORDER BY 1").fetchall() == [
        ("failed", 1),
        ("ok", 4),
    ]
    joined = run.query(
        "SELECT i.image_id, count(mask_id), sum(area) FROM images i LEFT JOIN masks m USING (image_id) GROUP BY 1"
    )
    expected = {image.image_id: (len(image), int(image.area.sum()) or None) for image in run.values()}
    assert {image_id: rest for image_id, *rest in joined.fetchall()} == {k: list(v) for k, v in expected.items()}
    assert joined.columns[0] == "image_id"


def test_relation_outlives_its_run(out: str):
    relation = maskmill.open_run(out).query("SELECT mask_area(rle_counts) = area FROM masks")
    assert relation.fetchall() == [(True,)] * 12


@pytest.fixture
def pairs(out: str) -> list[tuple[RunImage, int, int]]:
    """All pairs of masks of an image, with the image."""
    images = maskmill.open_run(out).values()
    return [(image, i, j) for image in images for i in range(len(image)) for j in range(len(image))]


def test_functions_on_one_mask_agree_with_its_pixels(out: str):
    run = maskmill.open_run(out)
    rows = run.query(
        f"""
        SELECT image_id, mask_id, mask_area(rle_counts), mask_bbox(rle_counts, {SIZE}),
               mask_at(rle_counts, {SIZE}, 3, 2), mask_at(rle_counts, {SIZE}, -1, 2.5),
               mask_components(rle_counts, {SIZE}), mask_holes(rle_counts, {SIZE}),
               mask_polygons(rle_counts, {SIZE})
        FROM masks
        """
    ).fetchall()
    assert len(rows) == 12
    for image_id, mask_id, area, box, at, outside, components, holes, polygons in rows:
        image = run[image_id]
        mask = image.decode(mask_id)
        assert area == image.area[mask_id]
        assert [box[side] for side in "xywh"] == image.boxes[mask_id].tolist()
        assert (at, outside) == (mask[2, 3], False)
        shape = json.loads(polygons)
        assert shape["type"] == "MultiPolygon"
        assert sum(_area(polygon[0]) - sum(map(_area, polygon[1:])) for polygon in shape["coordinates"]) == area
        assert all(ring[0] == ring[-1] for polygon in shape["coordinates"] for ring in polygon)
        assert components == cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[0] - 1
        outside = np.pad(~mask, 1, constant_values=True).astype(np.uint8)
        assert holes == cv2.connectedComponents(outside, connectivity=4)[0] - 2


def _area(ring: list[list[int]]) -> float:
    x, y = np.array(ring, float).T
    return abs(float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum())) / 2


def test_functions_on_two_masks_agree_with_pycocotools(out: str, pairs: list[tuple[RunImage, int, int]]):
    rows = (
        maskmill.open_run(out)
        .query(
            f"""
        SELECT a.image_id, a.mask_id, b.mask_id, mask_iou(a.rle_counts, b.rle_counts, {_size("a")}),
               mask_contains(a.rle_counts, b.rle_counts, {_size("a")}),
               mask_intersection(a.rle_counts, b.rle_counts, {_size("a")}),
               mask_union(a.rle_counts, b.rle_counts, {_size("a")}),
               mask_difference(a.rle_counts, b.rle_counts, {_size("a")})
        FROM masks a JOIN masks b USING (image_id)
        """
        )
        .fetchall()
    )
    values = {row[:3]: row[3:] for row in rows}
    assert len(values) == len(pairs) == 36
    for image, i, j in pairs:
        iou, contains, intersection, union, difference = values[image.image_id, i, j]
        rles: list[Any] = image.rles  # pycocotools declares a type for them that cannot be imported
        a, b = rles[i], rles[j]
        assert [[iou]] == coco.iou([a], [b], [0])
        assert [[contains]] == coco.iou([b], [a], [1])
        assert intersection == coco.merge([a, b], True)["counts"]
        assert union == coco.merge([a, b])["counts"]
        assert difference == rle.encode(image.decode(i) & ~image.decode(j))


def _size(alias: str) -> str:
    return f"{alias}.image_height, {alias}.image_width"


# docs/tables.md shows this query.
INSIDE_THE_LARGEST = """
WITH largest AS (SELECT image_id, arg_max(rle_counts, area) AS rle FROM masks GROUP BY image_id)
SELECT image_id, mask_id
FROM masks JOIN largest USING (image_id)
WHERE mask_contains(largest.rle, rle_counts, image_height, image_width) > 0.95
"""


def test_masks_inside_the_largest_mask_of_their_image_are_one_query(out: str):
    run = maskmill.open_run(out)
    found = set(run.query(INSIDE_THE_LARGEST).fetchall())
    expected = set[tuple[str, int]]()
    for image in run.values():
        if len(image):
            largest = image.decode(int(image.area.argmax()))
            shares = [(largest & mask).sum() / mask.sum() for mask in image.masks]
            expected |= {(image.image_id, k) for k, share in enumerate(shares) if share > 0.95}
    assert found == expected
    assert 4 <= len(expected) < 12
    documented = (Path(__file__).parents[2] / "docs" / "tables.md").read_text()
    assert "".join(f"    {line}\n" for line in INSIDE_THE_LARGEST.strip().splitlines()) in documented


def test_null_gives_null(on_disk: str):
    (row,) = (
        maskmill.open_run(on_disk)
        .query(
            "SELECT mask_area(NULL), mask_iou(NULL, '0<'::BLOB, 3, 4), "
            "mask_area(CASE WHEN mask_id < 0 THEN rle_counts END) FROM masks LIMIT 1"
        )
        .fetchall()
    )
    assert row == (None, None, None)


def test_every_function_is_documented():
    documented = (Path(__file__).parents[2] / "docs" / "tables.md").read_text()
    for name, function in FUNCTIONS.items():
        assert f"`{name}({', '.join(function.parameters)})`" in documented


# Runs without rows, and damage.


def test_run_without_a_finished_shard_has_empty_views(photographs: Path, tmp_path: Path):
    begin(photographs, tmp_path / "out")
    run = maskmill.open_run(tmp_path / "out")
    assert run.query("SELECT count(*) FROM masks").fetchall() == [(0,)]
    assert run.query("SELECT mask_iou(rle_counts, rle_counts, 1, 1), error FROM masks, images").fetchall() == []


def test_run_in_progress_has_what_is_done(on_disk: str):
    (Path(on_disk) / masks_key("00001")).unlink()
    assert maskmill.open_run(on_disk).query("SELECT count(*) FROM masks").fetchall() == [(9,)]


@pytest.mark.parametrize("name", ["it's", "a[1]*?", "back\\slash", "café ☕", 'quo"te'])
def test_output_may_have_any_name(on_disk: str, tmp_path: Path, name: str):
    Path(on_disk).rename(tmp_path / name)
    assert maskmill.open_run(tmp_path / name).query("SELECT count(*) FROM masks").fetchall() == [(12,)]


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELEC", 'syntax error at or near "SELEC"'),
        ("SELECT nothing FROM masks", 'column "nothing"'),
        ("SELECT mask_area(image_id) FROM masks", r"mask_area\(.*BLOB"),
        ("SELECT mask_area('~'::BLOB)", "mask_area: these counts are no mask: the RLE is empty or has characters"),
        (
            "SELECT mask_iou(rle_counts, rle_counts, 3, 4) FROM masks",
            "mask_iou: these counts are no mask: the RLE covers .* pixels of 12",
        ),
        ("", "returns no rows"),
    ],
)
def test_query_that_cannot_be_run_is_one_line(on_disk: str, sql: str, message: str, capsys: pytest.CaptureFixture[str]):
    assert main(["query", on_disk, sql or " "]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("maskmill: error: query: ") or not sql
    with pytest.raises((QueryError, duckdb.Error), match=message):
        maskmill.open_run(on_disk).query(sql).fetchall()


def test_folder_without_a_run_and_damaged_part_are_one_line(on_disk: str, capsys: pytest.CaptureFixture[str]):
    assert main(["query", f"{on_disk}/masks", "SELECT 1"]) == 1
    assert "not an output of maskmill" in capsys.readouterr().err
    part = Path(on_disk) / masks_key("00000")
    part.write_bytes(part.read_bytes()[:-20])
    assert main(["query", on_disk, "SELECT sum(area) FROM masks"]) == 1
    error = capsys.readouterr().err
    assert "part-00000.parquet" in error
    assert error.count("\n") == 1


# The command line.

ROWS = f"""
SELECT image_id, mask_id, rle_counts, predicted_iou > 0.6 AS good, NULL AS nothing,
       'NaN'::FLOAT AS broken, mask_bbox(rle_counts, {SIZE}) AS box, DATE '2026-11-28' AS day
FROM masks ORDER BY image_id, mask_id
"""


def _expected(run: Run) -> list[dict[str, object]]:
    return [
        {
            "image_id": image.image_id,
            "mask_id": k,
            "rle_counts": image.rle_counts[k].decode(),
            "good": bool(image.scores[k] > 0.6),
            "nothing": None,
            "broken": None,
            "box": dict(zip("xywh", image.boxes[k].tolist(), strict=True)),
            "day": "2026-11-28",
        }
        for image in run.values()
        for k in range(len(image))
    ]


def test_rows_are_written_in_each_format(out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    expected = _expected(maskmill.open_run(out))
    for name in ("rows.csv", "rows.json", "rows.JSONL", "rows.parquet"):
        assert main(["query", out, ROWS, "--to", str(tmp_path / name)]) == 0
    assert json.loads((tmp_path / "rows.json").read_text()) == expected
    assert [json.loads(line) for line in (tmp_path / "rows.JSONL").read_text().splitlines()] == expected
    with (tmp_path / "rows.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["rle_counts"] for row in rows] == [row["rle_counts"] for row in expected]
    assert [(row["good"], row["nothing"]) for row in rows] == [(str(row["good"]).lower(), "") for row in expected]
    assert [json.loads(row["box"]) for row in rows] == [row["box"] for row in expected]
    table = pq.read_table(tmp_path / "rows.parquet")
    assert [counts.decode() for counts in table["rle_counts"].to_pylist()] == [row["rle_counts"] for row in expected]
    assert table["box"].to_pylist() == [row["box"] for row in expected]
    assert sorted(path.name for path in tmp_path.glob(".*")) == []
    assert capsys.readouterr().out == ""


def test_rows_are_printed_in_each_format(on_disk: str):
    expected = _expected(maskmill.open_run(on_disk))

    def printed(format: str) -> bytes:
        code = "import sys; from maskmill.jobs.cli import main; sys.exit(main())"
        command = [sys.executable, "-c", code, "query", on_disk, ROWS, "--format", format]
        done = subprocess.run(command, capture_output=True)
        assert (done.returncode, done.stderr) == (0, b"")
        return done.stdout

    assert json.loads(printed("json")) == expected
    assert [json.loads(line) for line in printed("jsonl").splitlines()] == expected
    assert pq.read_table(io.BytesIO(printed("parquet"))).num_rows == 12
    lines = printed("table").decode().splitlines()
    assert lines[0].split() == list(expected[0])
    assert [line.split()[0] for line in lines[2:]] == [row["image_id"] for row in expected]


@pytest.mark.parametrize("format", ["csv", "json", "jsonl", "parquet", "table"])
def test_result_without_rows_is_valid(on_disk: str, tmp_path: Path, format: str):
    path = tmp_path / "empty"
    assert main(["query", on_disk, "SELECT * FROM masks WHERE area < 0", "--to", str(path), "--format", format]) == 0
    match format:
        case "csv":
            assert path.read_text().split(",")[0] == "image_id"
        case "json":
            assert json.loads(path.read_text()) == []
        case "jsonl":
            assert path.read_text() == ""
        case "parquet":
            assert pq.read_table(path).schema.names[0] == "image_id"
        case _:
            assert path.read_text().split()[0] == "image_id"


def test_table_stops_after_a_hundred_rows(on_disk: str, capsys: pytest.CaptureFixture[str]):
    assert main(["query", on_disk, "SELECT range AS n, repeat('x', 100) AS long FROM range(1000000)"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 103
    assert lines[2].split() == ["0", "x" * 57 + "..."]
    assert lines[-1].startswith("... the first 100 rows; --format csv")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "rows.txt"], "rows.txt: give --format, or a name that ends in .csv, .json, .jsonl or .parquet"),
        (["--to", "/no/such/rows.csv"], "/no/such/rows.csv: cannot be written: No such file or directory"),
    ],
)
def test_output_file_is_refused_in_one_line(
    on_disk: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["query", on_disk, "SELECT 1", *arguments]) in (1, 2)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_output_file_is_kept_when_the_query_fails(on_disk: str, tmp_path: Path):
    (tmp_path / "rows.csv").write_text("before")
    sql = "SELECT CASE WHEN n < 900000 THEN n ELSE error('stop') END FROM range(1000000) t(n)"
    assert main(["query", on_disk, sql, "--to", str(tmp_path / "rows.csv")]) == 1
    assert (tmp_path / "rows.csv").read_text() == "before"
    assert list(tmp_path.glob(".*")) == []


def test_process_ends_silently_with_an_open_relation(on_disk: str):
    code = (
        f"import maskmill; r = maskmill.open_run({on_disk!r}).query('SELECT count(*) FROM masks'); print(r.fetchall())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[(12,)]\n", "")


# S3.


class _CountedS3(S3Storage):
    """Counts the bytes that are read."""

    bytes_read: ClassVar[Counter[str]] = Counter()

    def read(self, key: str) -> bytes:
        data = super().read(key)
        self.bytes_read[key] += len(data)
        return data

    def open(self, key: str) -> BinaryIO:
        return io.BufferedReader(_CountedStream(super().open(key), key, self.bytes_read))  # pyright: ignore[reportArgumentType]


class _CountedStream(io.RawIOBase):
    def __init__(self, stream: BinaryIO, key: str, counter: Counter[str]) -> None:
        self._stream, self._key, self._counter = stream, key, counter

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, *arguments: int) -> int:
        return self._stream.seek(*arguments)

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        self._counter[self._key] += len(data)
        return len(data)


@pytest.mark.s3
def test_masks_of_one_image_on_s3_read_less_than_two_percent(
    bucket: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
    storage = open_storage(f"s3://{bucket}/out")
    write_run(storage, images=2000, masks_per_image=40, pool=mask_pool(64, 240, 320), images_per_shard=16)
    size = sum(item.size for item in storage.list("masks/"))
    requests: list[Request] = []
    proxy.behave(requests.append)
    counted = _CountedS3(bucket, "out", proxy.url)
    counted.bytes_read.clear()
    opened = maskmill.open_run(storage.uri)
    run = Run(counted, opened.settings, opened.plan)
    rows = run.query("SELECT mask_id, area FROM masks WHERE image_id = '0001/0001234.jpg'").fetchall()
    assert len(rows) == 40
    plan = next(item.size for item in storage.list("_plan"))
    assert set(counted.bytes_read) == {"masks/part-00077.parquet"}
    assert counted.bytes_read.total() + plan < 0.02 * size
    parts = {request.path.partition("?")[0] for request in requests if "/masks/part" in request.path}
    assert parts == {f"/{bucket}/out/masks/part-00077.parquet"}


@pytest.mark.s3
def test_columns_that_a_query_does_not_need_are_not_read_from_s3(
    bucket: str, moto: MotoServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", moto.url)
    storage = open_storage(f"s3://{bucket}/out")
    write_run(storage, images=256, masks_per_image=100, pool=mask_pool(128, 480, 640))
    opened = maskmill.open_run(storage.uri)
    counted = _CountedS3(bucket, "out", moto.url)
    counted.bytes_read.clear()
    run = Run(counted, opened.settings, opened.plan)
    assert run.query("SELECT count(*) FROM masks WHERE area > 1000").fetchall()[0][0] > 1000
    assert counted.bytes_read.total() < 0.2 * sum(item.size for item in storage.list("masks/"))
