"""A finished run, damaged in every way: verify finds each, and nothing in a sound one."""

import base64
import hashlib
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskmill.filters import rle
from maskmill.pipeline.checks import Check
from maskmill.pipeline.errors import RunMismatchError, StorageError
from maskmill.pipeline.ledger import Ledger
from maskmill.pipeline.parts import masks_key
from maskmill.pipeline.plan import encode_plan, read_plan
from maskmill.pipeline.records import Shard
from maskmill.pipeline.storage import open_storage
from maskmill.pipeline.table import IDENTITY_KEY, IMAGES_KEY, SCHEMA_VERSION, encode_part, images_part, read_footer
from maskmill.pipeline.verify import SHARDS_WORTH_PROCESSES, verify
from tests.fakes import FAIL, picture
from tests.pipeline.test_sources import tar_bytes
from tests.runs import retry, run

FIRST, SECOND = "masks/part-00000.parquet", "masks/part-00001.parquet"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of photographs a to e: c cannot be decoded, d fails in the engine. Three masks each."""
    folder = tmp_path_factory.mktemp("sound")
    photographs = folder / "photographs"
    photographs.mkdir()
    for seed, name in enumerate("abcde"):
        (photographs / f"{name}.png").write_bytes(picture(seed, FAIL if name == "d" else (0, 0, 0)))
    (photographs / "c.png").write_bytes(b"no image")
    run(photographs, folder / "out")
    return folder / "out"


@pytest.fixture
def out(sound: Path, tmp_path: Path) -> Path:
    """A copy of the sound run, to be damaged."""
    return Path(shutil.copytree(sound, tmp_path / "out"))


def photographs_of(out: Path) -> Path:
    return Path(json.loads((out / "_run.json").read_text())["source"])


def offences(out: Path) -> list[str]:
    return [offence for check in verify(open_storage(str(out))) for offence in check.offences]


def rewrite(
    path: Path,
    change_masks: Callable[[pa.Table], pa.Table] = lambda masks: masks,
    change_images: Callable[[pa.Table], pa.Table] | None = None,
) -> None:
    """Writes a part again with other rows; its footer metadata stay unless the images are changed."""
    masks = change_masks(pq.read_table(path))
    metadata = dict(pq.read_metadata(path).metadata)
    if change_images:
        images = change_images(read_footer(io.BytesIO(path.read_bytes())).images)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, images.schema) as stream:
            stream.write_table(images)
        metadata[IMAGES_KEY.encode()] = base64.b64encode(sink.getvalue())
    with pq.ParquetWriter(path, masks.schema) as writer:
        writer.write_table(masks)
        writer.add_key_value_metadata({key: value for key, value in metadata.items() if key != b"ARROW:schema"})


def with_value(table: pa.Table, column: str, row: int, value: object) -> pa.Table:
    values = table[column].to_pylist()
    values[row] = value
    position = table.schema.get_field_index(column)
    return table.set_column(position, table.schema.field(column), pa.array(values, table.schema.field(column).type))


def test_nothing_is_wrong_with_a_sound_run(sound: Path):
    assert list(verify(open_storage(str(sound)))) == [
        Check((), shards=3),
        Check((), done=True, images=2, failed=0, masks=6),
        Check((), done=True, images=2, failed=2, masks=0),
        Check((), done=True, images=1, failed=0, masks=3),
    ]


def test_nothing_is_wrong_with_a_sound_run_when_its_source_is_tars(tmp_path: Path):
    (tmp_path / "tars" / "deep").mkdir(parents=True)
    for number, name in enumerate(["0.tar", "deep/0.tar", "deep/1.tar"]):
        (tmp_path / "tars" / name).write_bytes(tar_bytes([("x.png", picture(number)), ("x.png", b""), ("y.png", b"")]))
    with open(tmp_path / "tars" / "deep" / "1.tar", "r+b") as stream:
        stream.truncate(600)
    run(tmp_path / "tars", tmp_path / "out")
    assert offences(tmp_path / "out") == []
    rows = pq.read_table(tmp_path / "out" / "images").to_pylist()
    assert [row["image_id"] for row in rows] == [
        *("0.tar/x.png", "0.tar/x.png#2", "0.tar/y.png"),
        *("deep/0.tar/x.png", "deep/0.tar/x.png#2", "deep/0.tar/y.png"),
        "deep/1.tar/x.png",
    ]


def test_probes_of_killed_starts_are_no_offence(out: Path):
    (out / "_probe-0123").write_bytes(b"first")
    assert offences(out) == []


# Objects.


def test_part_is_missing_when_the_run_is_not_finished(out: Path):
    (out / FIRST).unlink()
    (out / "images/part-00000.parquet").unlink()
    checks = list(verify(open_storage(str(out))))
    assert checks[1] == Check((f"{FIRST}: missing: run `maskmill generate` again",))
    assert [check.done for check in checks[1:]] == [False, True, True]


def test_images_part_without_its_masks_part_is_found(out: Path):
    (out / FIRST).unlink()
    assert "images/part-00000.parquet: there, but its masks part is missing" in offences(out)


def test_missing_images_part_is_found(out: Path):
    (out / "images/part-00001.parquet").unlink()
    assert offences(out) == ["images/part-00001.parquet: missing: run `maskmill generate` again to derive it"]


@pytest.mark.parametrize("table", ["masks", "images"])
@pytest.mark.parametrize("kept", [0, 0.5, 0.99])
def test_truncated_part_is_found(out: Path, table: str, kept: float):
    path = out / f"{table}/part-00000.parquet"
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    (offence,) = offences(out)
    assert offence.startswith(f"{table}/part-00000.parquet: damaged: ")
    assert "\n" not in offence


def test_images_part_that_differs_from_the_footer_is_found(out: Path):
    shutil.copy(out / "images/part-00001.parquet", out / "images/part-00000.parquet")
    assert offences(out) == ["images/part-00000.parquet: differs from the footer of its masks part"]


@pytest.mark.parametrize("key", ["notes.txt", "masks/part-00003.parquet", "masks/part-00000.parquet.bak", "images/x/y"])
def test_stray_object_is_found(out: Path, key: str):
    (out / key).parent.mkdir(exist_ok=True)
    (out / key).write_bytes(b"")
    assert offences(out) == [f"{key}: does not belong to the run"]


def test_part_of_another_run_is_found(out: Path, tmp_path: Path):
    run(photographs_of(out), tmp_path / "other", weights="1" * 64)
    shutil.copy(tmp_path / "other" / FIRST, out / FIRST)
    assert offences(out) == [f"{FIRST}: belongs to another run than _run.json describes"]


def test_part_under_the_name_of_another_shard_is_found(out: Path):
    for table in ("masks", "images"):
        shutil.copy(out / f"{table}/part-00000.parquet", out / f"{table}/part-00001.parquet")
    assert offences(out) == [
        f"{SECOND}: c.png: planned, but has no row in the images table",
        f"{SECOND}: d.png: planned, but has no row in the images table",
        f"{SECOND}: a.png: has a row in the images table, but is not planned",
        f"{SECOND}: b.png: has a row in the images table, but is not planned",
        f"{SECOND}: a.png: its column `shard` is 00000",
        f"{SECOND}: b.png: its column `shard` is 00000",
    ]


def test_edited_run_is_found_in_every_part(out: Path):
    path = out / "_run.json"
    path.write_text(path.read_text().replace('"precision": "exact"', '"precision": "fast"'))
    assert offences(out) == [
        f"masks/part-0000{number}.parquet: belongs to another run than _run.json describes" for number in range(3)
    ]


def test_verify_refuses_what_is_no_run_or_of_another_schema(out: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunMismatchError, match="not an output of maskmill"):
        offences(tmp_path / "empty")
    path = out / "_run.json"
    path.write_text(path.read_text().replace(f'"schema_version": {SCHEMA_VERSION}', '"schema_version": 999'))
    with pytest.raises(RunMismatchError, match="schema version 999"):
        offences(out)
    path.write_text("{")
    with pytest.raises(RunMismatchError, match="damaged"):
        offences(out)


def test_verify_refuses_a_run_without_a_readable_plan(out: Path):
    (out / "_plan.parquet").write_bytes(b"PAR1")
    with pytest.raises(StorageError, match="damaged"):
        offences(out)
    (out / "_plan.parquet").unlink()
    with pytest.raises(StorageError, match="No such file"):
        offences(out)


def test_image_that_is_planned_twice_is_found(out: Path):
    source = str(photographs_of(out))
    plan = [("a.png", "b.png"), ("c.png", "d.png"), ("e.png", "a.png")]
    shards = [Shard(index, source, image_ids) for index, image_ids in enumerate(plan)]
    (out / "_plan.parquet").write_bytes(encode_plan(read_plan(open_storage(str(out))).source, shards))
    assert offences(out) == [
        "_plan.parquet: a.png is planned 2 times",
        "masks/part-00002.parquet: a.png: planned, but has no row in the images table",
    ]


@pytest.mark.parametrize("column", ["predicted_iou", "rle_counts", "image_id"])
def test_flipped_bit_in_a_column_is_found(out: Path, column: str):
    path = out / FIRST
    chunks = pq.read_metadata(path).row_group(0)
    (chunk,) = [c for c in map(chunks.column, range(chunks.num_columns)) if c.path_in_schema == column]
    first = chunk.dictionary_page_offset or chunk.data_page_offset
    data = bytearray(path.read_bytes())
    data[first + chunk.total_compressed_size - 1] ^= 1
    path.write_bytes(data)
    (offence,) = offences(out)
    assert offence.startswith(f"{FIRST}: damaged: ")


def test_flipped_bits_in_the_footer_never_end_the_process(out: Path):
    path = out / FIRST
    sound = path.read_bytes()
    start = sound.index(IMAGES_KEY.encode())
    for position in range(start, len(sound), 307):
        path.write_bytes(sound[:position] + bytes([sound[position] ^ 4]) + sound[position + 1 :])
        offences(out)


# Rows.


def drop_row(table: pa.Table, row: int) -> pa.Table:
    return pa.concat_tables([table.slice(0, row), table.slice(row + 1)])


def repeat_row(table: pa.Table, row: int) -> pa.Table:
    return pa.concat_tables([table.slice(0, row + 1), table.slice(row)])


def flip_rle_byte(table: pa.Table) -> pa.Table:
    counts = bytearray(table["rle_counts"][1].as_py())
    counts[len(counts) // 2] ^= 1
    return with_value(table, "rle_counts", 1, bytes(counts))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (flip_rle_byte, "a.png, mask 1: the RLE "),
        (lambda t: with_value(t, "rle_counts", 1, b""), "a.png, mask 1: the RLE is empty"),
        (lambda t: with_value(t, "rle_counts", 1, b"0\x7f"), "a.png, mask 1: the RLE is empty or has characters"),
        (lambda t: with_value(t, "rle_counts", 1, t["rle_counts"][1].as_py() + b"o"), "mask 1: the RLE ends within"),
        (lambda t: with_value(t, "rle_counts", 1, t["rle_counts"][1].as_py() + b"1"), "mask 1: the RLE covers"),
        (lambda t: with_value(t, "rle_counts", 1, rle.encode(np.ones((8, 9), np.bool_))), "the RLE has 72 pixels"),
        (lambda t: with_value(t, "area", 0, 7), r"a.png, mask 0: area is 7, but the RLE has \d+ pixels"),
        (lambda t: with_value(t, "bbox_w", 0, 5), r"a.png, mask 0: bbox is \(0, 0, 5, 7\), but the RLE spans"),
        (lambda t: with_value(t, "image_width", 0, 8), "mask 0: the image is 8 x 9 pixels, the mask 8 x 8"),
        (lambda t: with_value(t, "mask_id", 2, 3), r"a.png: the mask_ids are not 0 to 2"),
        (lambda t: with_value(t, "image_id", 5, "z.png"), "z.png: has masks, but no row in the images table"),
        (lambda t: drop_row(t, 4), "b.png: n_masks is 3, but there are 2 masks"),
        (lambda t: repeat_row(t, 4), "b.png: n_masks is 3, but there are 4 masks"),
        (lambda t: t.take([1, 0, 2, 3, 4, 5]), "the masks are not sorted"),
        (lambda t: t.take([3, 4, 5, 0, 1, 2]), "the masks are not sorted"),
        (lambda t: t.drop_columns(["area"]), "the masks table has other columns"),
    ],
)  # fmt: skip
def test_changed_mask_row_is_found(out: Path, change: Callable[[pa.Table], pa.Table], expected: str):
    rewrite(out / FIRST, change_masks=change)
    found = offences(out)
    assert all(offence.startswith(f"{FIRST}: ") for offence in found)
    assert any(re.search(expected, offence) for offence in found), found


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t: repeat_row(t, 0), "c.png: 2 rows in the images table"),
        (lambda t: drop_row(t, 0), "c.png: planned, but has no row in the images table"),
        (lambda t: with_value(t, "image_id", 1, "z.png"), "z.png: has a row in the images table, but is not planned"),
        (lambda t: t.take([1, 0]), "the images are not sorted by image_id"),
        (lambda t: with_value(t, "shard", 0, "00000"), "c.png: its column `shard` is 00000"),
        (lambda t: with_value(t, "status", 0, "ok"), "c.png: its status is ok, but it has no size or has an error"),
        (lambda t: with_value(t, "status", 0, "done"), "c.png: its status done is unknown"),
        (lambda t: with_value(t, "error", 0, None), "c.png: it has failed, but has no reason"),
        (lambda t: with_value(t, "error_step", 0, "lunch"), "c.png: it has failed, but has no reason"),
        (lambda t: with_value(t, "n_masks", 0, 1), "c.png: n_masks is 1, but there are 0 masks"),
        (lambda t: t.drop_columns(["error"]), "the images table has other columns"),
        (lambda t: with_value(t, "status", 0, None), "the images table has nulls in status"),
    ],
)  # fmt: skip
def test_changed_image_row_is_found(out: Path, change: Callable[[pa.Table], pa.Table], expected: str):
    rewrite(out / SECOND, change_images=change)
    found = offences(out)
    assert any(offence.startswith(f"{SECOND}: {expected}") for offence in found), found


def test_image_of_another_tar_is_found(tmp_path: Path):
    (tmp_path / "tars").mkdir()
    for name in ("0.tar", "1.tar"):
        (tmp_path / "tars" / name).write_bytes(tar_bytes({"x.png": picture(0)}))
    run(tmp_path / "tars", tmp_path / "out")
    for table in ("masks", "images"):
        folder = tmp_path / "out" / table
        shutil.copy(folder / "part-00000.parquet", folder / "part-00001.parquet")
    assert f"{SECOND}: 0.tar/x.png: has a row in the images table, but is not planned" in offences(tmp_path / "out")


# Retries.

RETRY, AGAIN = "masks/part-00001-retry-1.parquet", "masks/part-00001-retry-2.parquet"


@pytest.fixture(scope="module")
def sound_retry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards: c and d failed twice, then only d, then none."""
    folder = tmp_path_factory.mktemp("sound_retry")
    photographs = folder / "photographs"
    photographs.mkdir()
    for seed, name in enumerate("abcd"):
        (photographs / f"{name}.png").write_bytes(picture(seed) if name in "ab" else b"no image")
    run(photographs, folder / "out")
    (photographs / "c.png").write_bytes(picture(2))
    retry(folder / "out")
    (photographs / "d.png").write_bytes(picture(3))
    retry(folder / "out")
    return folder / "out"


@pytest.fixture
def retried(sound_retry: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(sound_retry, tmp_path / "out"))


def test_nothing_is_wrong_with_a_sound_run_when_it_was_retried(sound_retry: Path):
    assert list(verify(open_storage(str(sound_retry)))) == [
        Check((), shards=2),
        Check((), done=True, images=2, failed=0, masks=6),
        Check((), done=True, images=2, failed=0, masks=6),
    ]


def test_nothing_is_wrong_when_a_tar_was_retried_that_had_broken_off(tmp_path: Path):
    tar = tar_bytes([("x.png", picture(0)), ("y.png", b""), ("z.png", picture(1))])
    (tmp_path / "0.tar").write_bytes(tar[:2048])
    run(tmp_path / "0.tar", tmp_path / "out")
    (tmp_path / "0.tar").write_bytes(tar)
    retry(tmp_path / "out")
    assert list(verify(open_storage(str(tmp_path / "out")))) == [
        Check((), shards=1),
        Check((), done=True, images=3, failed=1, masks=6),
    ]


def test_gap_in_a_chain_of_retries_is_found(retried: Path):
    (retried / RETRY).unlink()
    assert offences(retried) == [
        f"{RETRY}: missing: but a later retry exists",
        "images/part-00001-retry-1.parquet: there, but its masks part is missing",
    ]


def test_missing_part_that_was_retried_is_found(retried: Path):
    (retried / SECOND).unlink()
    assert f"{SECOND}: missing: but a later retry exists" in offences(retried)


def test_missing_last_retry_is_found(retried: Path):
    (retried / AGAIN).unlink()
    assert "images/part-00001-retry-2.parquet: there, but its masks part is missing" in offences(retried)
    (retried / "images/part-00001-retry-2.parquet").unlink()
    assert offences(retried) == ["images/part-00001-retry-1.parquet: differs from the footer of its masks part"]


def test_images_part_that_still_has_what_was_retried_is_found(retried: Path):
    part = (retried / SECOND).read_bytes()
    (retried / "images/part-00001.parquet").write_bytes(images_part(part))
    assert offences(retried) == ["images/part-00001.parquet: differs from the footer of its masks part"]


@pytest.mark.parametrize("key", ["masks/part-00001-retry-01.parquet", "masks/part-00002-retry-1.parquet"])
def test_retry_of_nothing_is_a_stray_object(retried: Path, key: str):
    shutil.copy(retried / RETRY, retried / key)
    assert offences(retried) == [f"{key}: does not belong to the run"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t: with_value(t, "image_id", 0, "a.png"), "a.png: has a row in the images table, but is not left to"),
        (lambda t: drop_row(t, 1), "d.png: left to retry, but has no row in the images table"),
        (lambda t: with_value(t, "shard", 0, "00001"), "c.png: its column `shard` is 00001"),
    ],
)
def test_retry_that_did_other_images_is_found(retried: Path, change: Callable[[pa.Table], pa.Table], expected: str):
    rewrite(retried / RETRY, change_images=change)
    found = offences(retried)
    assert any(offence.startswith(f"{RETRY}: {expected}") for offence in found), found


def test_retry_of_an_image_that_was_ok_is_found(retried: Path):
    # The last retry again, as if the one before had left d: it is ok there already.
    shutil.copy(retried / AGAIN, retried / "masks/part-00001-retry-3.parquet")
    shutil.copy(retried / AGAIN.replace("masks", "images"), retried / "images/part-00001-retry-3.parquet")
    key = "masks/part-00001-retry-3.parquet"
    assert f"{key}: d.png: has a row in the images table, but is not left to retry" in offences(retried)


def test_retry_of_an_image_of_a_tar_that_was_ok_is_found(tmp_path: Path):
    (tmp_path / "0.tar").write_bytes(tar_bytes([("x.png", picture(0)), ("y.png", b"")]))
    run(tmp_path / "0.tar", tmp_path / "out")
    retry(tmp_path / "out")
    for table in ("masks", "images"):
        folder = tmp_path / "out" / table
        shutil.copy(folder / "part-00000.parquet", folder / "part-00000-retry-1.parquet")
    expected = "0.tar/x.png: has a row in the images table, but is not left to retry"
    assert f"masks/part-00000-retry-1.parquet: {expected}" in offences(tmp_path / "out")


# Images that vanish: parts without rows, such as reading tars as a folder of images once committed.


def empty(out: Path, name: str) -> None:
    """Makes the part without a row, and the images parts of its shard as they are derived from such a part."""
    ledger = Ledger(open_storage(str(out)), hashlib.sha256((out / "_run.json").read_bytes()).hexdigest())
    (out / masks_key(name)).unlink(missing_ok=True)
    shard, _, retry_number = name.partition("-retry-")
    part = Shard(int(shard), "", retry=int(retry_number or 0))
    ledger.commit(part, encode_part(part, [], ledger.identity))
    ledger.publish_images(name)


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """A run over two tars of two images each: the first broke off after one, of the second one image is damaged."""
    (tmp_path / "tars").mkdir()
    whole = tar_bytes([("x.png", picture(0)), ("y.png", picture(1))])
    (tmp_path / "tars" / "0.tar").write_bytes(whole[: 512 * (1 + -(-len(picture(0)) // 512))])
    (tmp_path / "tars" / "1.tar").write_bytes(tar_bytes([("x.png", picture(0)), ("y.png", b"")]))
    run(tmp_path / "tars", tmp_path / "out")
    assert offences(tmp_path / "out") == []
    return tmp_path / "out"


@pytest.mark.parametrize(("shard", "failed"), [("00000", "0.tar"), ("00001", "1.tar/y.png")])
def test_failed_row_of_a_tar_that_vanished_in_its_retry_is_found(tars: Path, shard: str, failed: str):
    empty(tars, f"{shard}-retry-1")
    key = f"masks/part-{shard}-retry-1.parquet"
    found = offences(tars)
    assert f"{key}: {failed}: left to retry, but has no row in the images table" in found
    assert f"{key}: {tars.parent}/tars/{failed[:5]}: has no row in the images table" in found


def test_failed_row_that_vanished_in_its_retry_is_found(out: Path):
    empty(out, "00001-retry-1")
    assert offences(out) == [
        f"masks/part-00001-retry-1.parquet: {name}.png: left to retry, but has no row in the images table"
        for name in "cd"
    ]


def test_tar_without_any_row_is_found(tars: Path):
    empty(tars, "00001")
    assert offences(tars) == [f"{SECOND}: {tars.parent}/tars/1.tar: has no row in the images table"]


def test_part_with_fewer_rows_than_planned_images_is_found(out: Path):
    empty(out, "00000")
    assert offences(out) == [f"{FIRST}: {name}.png: planned, but has no row in the images table" for name in "ab"]


# Many.


def test_offences_come_in_the_order_of_the_plan_when_there_are_many_shards(tmp_path: Path):
    (tmp_path / "photographs").mkdir()
    for seed in range(SHARDS_WORTH_PROCESSES):
        (tmp_path / "photographs" / f"{seed:03d}.png").write_bytes(picture(seed))
    out = tmp_path / "out"
    run(tmp_path / "photographs", out, images_per_shard=1)
    damaged = range(1, SHARDS_WORTH_PROCESSES, 7)
    for shard in damaged:
        rewrite(out / f"masks/part-{shard:05d}.parquet", lambda table: with_value(table, "area", 0, 10**6))
    first, *checks = verify(open_storage(str(out)))
    assert first == Check((), shards=SHARDS_WORTH_PROCESSES)
    assert [shard for shard, check in enumerate(checks) if check.offences] == list(damaged)
    assert sum(check.masks for check in checks) == 3 * SHARDS_WORTH_PROCESSES


# Every region of a part.


def test_flipped_byte_is_found_wherever_values_are(out: Path):
    path = out / FIRST
    sound = path.read_bytes()
    group = pq.read_metadata(path).row_group(0)
    columns = [group.column(index) for index in range(group.num_columns)]
    first = [column.dictionary_page_offset or column.data_page_offset for column in columns]
    regions = {
        "magic": 0,
        "end magic": len(sound) - 1,
        "length of the footer": len(sound) - 8,
        "images": sound.index(IMAGES_KEY.encode()) + 400,
        "identity": sound.rindex(IDENTITY_KEY.encode()) + len(IDENTITY_KEY) + 10,
        **{c.path_in_schema: start + c.total_compressed_size - 1 for c, start in zip(columns, first, strict=True)},
    }
    for region, position in regions.items():
        path.write_bytes(sound[:position] + bytes([sound[position] ^ 1]) + sound[position + 1 :])
        assert any(FIRST in offence for offence in offences(out)), region


def test_archive_that_is_planned_twice_is_found(tmp_path: Path):
    (tmp_path / "0.tar").write_bytes(tar_bytes({"x.png": picture(0)}))
    run(tmp_path / "0.tar", tmp_path / "out")
    uri = str(tmp_path / "0.tar")
    (tmp_path / "out" / "_plan.parquet").write_bytes(
        encode_plan(read_plan(open_storage(str(tmp_path / "out"))).source, [Shard(0, uri), Shard(1, uri)])
    )
    assert f"_plan.parquet: {uri} is planned 2 times" in offences(tmp_path / "out")
