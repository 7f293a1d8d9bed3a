"""Whole runs over every kind of source: each image has its row, a retry finds just what had failed, verify agrees."""

from collections.abc import Callable
from pathlib import Path

import pytest

from maskmill.pipeline.parts import images_key
from maskmill.pipeline.plan import read_plan
from maskmill.pipeline.storage import open_storage
from maskmill.pipeline.table import read_parquet
from maskmill.pipeline.verify import verify
from tests import runs
from tests.fakes import picture
from tests.pipeline.sources import hugging_face, tar_bytes, write

NAMES = ("a.png", "b.png", "c.png", "d.png", "e.png")
IMAGES = {name: b"broken" if name in ("b.png", "e.png") else picture(number) for number, name in enumerate(NAMES)}


def folder(path: Path) -> tuple[Path, str]:
    write(path, *NAMES)
    for name, data in IMAGES.items():
        (path / name).write_bytes(data)
    return path, ""


def tar(path: Path) -> tuple[Path, str]:
    (path / "x.tar").write_bytes(tar_bytes(IMAGES))
    return path / "x.tar", "x.tar/"


def parquet(path: Path) -> tuple[Path, str]:
    (path / "x.parquet").write_bytes(hugging_face([(data, name) for name, data in IMAGES.items()], rows_per_group=2))
    return path / "x.parquet", "x.parquet/"


def manifest(path: Path) -> tuple[Path, str]:
    folder(path)
    (path / "list.csv").write_text("uri\n" + "".join(f"./{name}\n" for name in NAMES))
    return path / "list.csv", ""


@pytest.mark.parametrize("make", [folder, tar, parquet, manifest])
def test_every_image_has_its_row_when_a_run_was_retried(tmp_path: Path, make: Callable[[Path], tuple[Path, str]]):
    source = tmp_path / "source"
    source.mkdir()
    path, prefix = make(source)
    out = tmp_path / "out"
    storage = open_storage(str(out))
    runs.run(path, out)
    for retry in range(2):
        checks = list(verify(storage))
        assert [offence for check in checks for offence in check.offences] == []
        assert (sum(check.images for check in checks), sum(check.failed for check in checks)) == (5, 2)
        rows = [row for part in out.glob("images/*.parquet") for row in read_parquet(part.read_bytes()).to_pylist()]
        assert sorted(row["image_id"] for row in rows) == [f"{prefix}{name}" for name in NAMES]
        assert all(row["source_uri"].startswith(str(source)) for row in rows)
        if retry == 0:
            shards = runs.retry(out)
            assert {name for shard in shards for name in shard.image_ids or ()} <= {f"{prefix}b.png", f"{prefix}e.png"}
    assert storage.exists(images_key("00000"))
    assert read_plan(storage).n_images == (None if make is tar else 5)


@pytest.mark.parametrize("cut", [700, 3000, 0])
def test_no_image_is_lost_when_a_tar_is_shorter_at_its_retry(tmp_path: Path, cut: int):
    path, _ = tar(tmp_path)
    out, whole = tmp_path / "out", path.read_bytes()
    storage = open_storage(str(out))
    runs.run(path, out)
    path.write_bytes(whole[:cut])
    runs.retry(out)

    checks = list(verify(storage))
    assert [offence for check in checks for offence in check.offences] == []
    statuses = statuses_in(out)
    ok = {f"x.tar/{name}": "ok" for name in ("a.png", "c.png", "d.png")}
    assert statuses == {**ok, "x.tar/b.png": "failed", "x.tar/e.png": "failed", "x.tar": "failed"}

    # With the tar whole again, and its images mended, nothing is left but what it has.
    path.write_bytes(tar_bytes({name: picture(number) for number, name in enumerate(NAMES)}))
    runs.retry(out)
    assert statuses_in(out) == {f"x.tar/{name}": "ok" for name in NAMES}
    assert [offence for check in verify(storage) for offence in check.offences] == []


def test_images_behind_the_damage_of_a_tar_are_found_when_it_is_mended(tmp_path: Path):
    path, _ = tar(tmp_path)
    out, whole = tmp_path / "out", path.read_bytes()
    path.write_bytes(whole[:3000])
    runs.run(path, out)
    assert len(statuses_in(out)) < len(NAMES)
    path.write_bytes(whole)
    runs.retry(out)
    assert statuses_in(out).keys() == {f"x.tar/{name}" for name in NAMES}


def statuses_in(out: Path) -> dict[str, str]:
    """image_id -> status; each id once."""
    rows = [row for part in out.glob("images/*.parquet") for row in read_parquet(part.read_bytes()).to_pylist()]
    statuses = {row["image_id"]: row["status"] for row in rows}
    assert len(statuses) == len(rows)
    return statuses
