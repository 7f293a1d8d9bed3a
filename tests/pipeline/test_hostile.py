"""Runs over everything hostile at once: each file has its row, and nothing else happens."""

from __future__ import annotations

import os
import resource
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from maskmill.pipeline.errors import SourceError
from maskmill.pipeline.storage import open_storage
from maskmill.pipeline.verify import verify
from tests import hostile
from tests.kills import start, was_killed
from tests.runs import run

MEMORY = 200 * hostile.MIB  # less than any one of the bombs holds
_WRITES = ("os.mkdir", "os.rmdir", "os.remove", "os.rename", "os.link", "os.symlink", "os.truncate", "os.chmod")


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def run_confined(sources: list[Path], out: Path) -> None:
    """Runs that end their process where they take more MEMORY or write anywhere but into their output below `out`.

    A source that is refused has no tables.
    """
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sys.dont_write_bytecode = True

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        written = event in _WRITES or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if written and isinstance(arguments[0], str | bytes | os.PathLike):
            if not os.fsdecode(arguments[0]).startswith(str(out)):
                sys.stderr.write(f"{event}{arguments}\n")
                os._exit(99)
        elif event in ("os.system", "subprocess.Popen", "os.exec", "os.fork", "os.posix_spawn", "socket.connect"):
            os._exit(98)

    sys.addaudithook(watch)
    for source in sources:
        with suppress(SourceError):
            run(source, out / source.name, images_per_shard=16)
    # The most there ever was. No limit of addresses: pyarrow's allocator takes gigabytes of them, and no memory.
    taken = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    if taken > MEMORY:
        sys.stderr.write(f"{taken} bytes of memory\n")
        os._exit(97)


def run_all(sources: list[Path], out: Path) -> None:
    """Runs over each of the sources, with a look at everything around them."""
    before = around(out)
    assert not was_killed(start(partial(run_confined, sources, out)))
    assert around(out) == before


def rows_of(out: Path) -> dict[str, dict[str, Any]]:
    """The images table of a run, which is sound."""
    assert [offence for check in verify(open_storage(str(out))) for offence in check.offences] == []
    rows = pq.read_table(out / "images").to_pylist()
    assert len({row["image_id"] for row in rows}) == len(rows)
    return {row["image_id"]: row for row in rows}


def around(out: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder beside the output: its size and when it was changed, in nanoseconds."""
    others = (path for path in out.parent.rglob("*") if path != out and not path.is_relative_to(out))
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in others}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An empty folder for the output, in a folder that nobody else changes."""
    (tmp_path / "outputs" / "out").mkdir(parents=True)
    return tmp_path / "outputs" / "out"


def test_every_hostile_picture_has_its_row(tmp_path: Path, out: Path):
    refused, harmless, doubtful = (
        hostile.refused_pictures(),
        hostile.harmless_pictures(),
        hostile.doubtful_pictures(),
    )
    files = refused | harmless | doubtful
    assert len(files) >= 60
    run_all([write(tmp_path / "outputs" / "pictures", files)], out)
    rows = rows_of(out / "pictures")
    assert rows.keys() == files.keys()
    assert {name: rows[name]["error"] for name in harmless if rows[name]["status"] != "ok"} == {}
    assert {name for name in refused if rows[name]["status"] != "failed"} == set()
    assert {rows[name]["error_step"] for name in refused} == {"decode"}


def test_every_hostile_tar_has_its_rows(tmp_path: Path, out: Path):
    tars = hostile.tars()
    assert len(tars) >= 40
    run_all([write(tmp_path / "outputs" / "tars", tars)], out)
    rows = rows_of(out / "tars")
    for name in tars:
        assert any(image_id == name or image_id.startswith(f"{name}/") for image_id in rows), name
    assert not any(part in ("", ".", "..") for image_id in rows for part in image_id.split("/"))
    assert [rows[f"sound.tar/{name}"]["status"] for name in ("a.png", "b.png")] == ["ok", "ok"]
    for name in ("link.tar/l.png", "hard link.tar/h.png", "character device.tar/d.png", "pipe.tar/p.png"):
        assert "not followed" in rows[name]["error"]


def test_every_hostile_parquet_file_is_refused_or_has_its_rows(tmp_path: Path, out: Path):
    files = {f"{name}.parquet": data for name, data in hostile.parquets().items()}
    folder = write(tmp_path / "outputs" / "parquets", files)
    run_all([folder / name for name in files], out)
    rows = {name: rows_of(out / name) for name in files if (out / name / "images").exists()}
    assert {row["status"] for row in rows["sound.parquet"].values()} == {"ok"}
    assert {row["status"] for row in rows["hostile pictures.parquet"].values()} == {"failed"}
    assert len(rows["paths that lead out.parquet"]) == 12
    assert not any(part in ("", ".", "..") for ids in rows.values() for name in ids for part in name.split("/"))
    assert {"text.parquet", "cut 100.parquet", "numbers.parquet", "lists.parquet"}.isdisjoint(rows)
