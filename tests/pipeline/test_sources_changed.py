"""A source that changes or moves after its run was planned: what was planned is read, and no image vanishes."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from maskmill.annotations import open_annotations
from maskmill.pipeline.errors import ConfigError, SourceError
from maskmill.pipeline.finished import open_finished_run
from maskmill.pipeline.parts import masks_key
from maskmill.pipeline.preview import overlays
from maskmill.pipeline.records import ImageRecord, Shard
from maskmill.pipeline.sources import PlannedSource, Source
from maskmill.pipeline.storage import open_storage
from maskmill.pipeline.table import read_parquet
from maskmill.pipeline.verify import verify
from maskmill.pipeline.worker import run_local
from tests import runs
from tests.fakes import picture
from tests.pipeline.sources import hugging_face, parquet_bytes, tar_bytes
from tests.pipeline.test_sources_runs import statuses_in

if TYPE_CHECKING:
    from testing.s3_servers import MotoServer

NAMES = ("a.png", "b.png", "c.png")
IMAGES = {name: picture(number) for number, name in enumerate(NAMES)}
BROKEN = {**IMAGES, "b.png": b"broken"}


def folder(source: Path, images: dict[str, bytes]) -> str:
    for name, data in images.items():
        (source / name).write_bytes(data)
    return ""


def tars(source: Path, images: dict[str, bytes]) -> str:
    for name, data in images.items():
        (source / f"{name}.tar").write_bytes(tar_bytes({name: data}))
    return ""


def parquet(source: Path, images: dict[str, bytes]) -> str:
    (source / "x.parquet").write_bytes(hugging_face([(data, name) for name, data in images.items()], rows_per_group=1))
    return ""


def manifest(source: Path, images: dict[str, bytes]) -> str:
    folder(source, images)
    (source / "list.csv").write_text("uri\n" + "".join(f"{name}\n" for name in images))
    return "list.csv"


def one_tar(source: Path, images: dict[str, bytes]) -> str:
    (source / "x.tar").write_bytes(tar_bytes(images))
    return "x.tar"


def tar_pattern(source: Path, images: dict[str, bytes]) -> str:
    tars(source, images)
    return "*.tar"


def one_parquet(source: Path, images: dict[str, bytes]) -> str:
    parquet(source, images)
    return "x.parquet"


KINDS = [folder, tars, parquet, manifest, one_tar, tar_pattern, one_parquet]
Make = Callable[[Path, dict[str, bytes]], str]


def additions(source: Path) -> None:
    """Files that each would make the folder a source of another kind; some come first in the order of names."""
    (source / "0.png").write_bytes(picture(7))
    (source / "0.tar").write_bytes(tar_bytes({"x.png": picture(8)}))
    (source / "0.parquet").write_bytes(hugging_face([(picture(9), "x.png")]))
    (source / "zz.png").write_bytes(picture(7))
    (source / "zz.tar").write_bytes(tar_bytes({"x.png": picture(8)}))
    (source / "zz.parquet").write_bytes(parquet_bytes({"uri": ["nowhere.png"]}))


def offences(out: Path) -> list[str]:
    return [offence for check in verify(open_storage(str(out))) for offence in check.offences]


def source_uris(out: Path) -> list[str]:
    return [
        row["source_uri"] for part in (out / "images").iterdir() for row in read_parquet(part.read_bytes()).to_pylist()
    ]


@dataclass
class Begun:
    """A run with one missing shard, and one failed image in another shard."""

    source: Path
    name: str  # what SOURCE names in `source`; "" for itself
    out: Path

    @property
    def uri(self) -> str:
        return str(self.source / self.name)


def begin(tmp_path: Path, make: Make) -> Begun:
    source = tmp_path / "source"
    source.mkdir()
    name = make(source, BROKEN)
    begun = Begun(source, name, tmp_path / "out")
    runs.run(begun.uri, begun.out, images_per_shard=1)
    make(source, IMAGES)
    if make is not one_tar:  # which has one shard, with the image that failed
        for table in ("masks", "images"):
            (begun.out / table / "part-00002.parquet").unlink()
    return begun


# What somebody puts beside the images.


@pytest.mark.parametrize("make", KINDS)
def test_run_goes_on_as_planned_when_other_files_were_put_beside_its_source(tmp_path: Path, make: Make):
    begun = begin(tmp_path, make)
    additions(begun.source)
    runs.run(begun.uri, begun.out, images_per_shard=1)
    runs.retry(begun.out)
    assert sorted(Path(image_id).name for image_id in statuses_in(begun.out)) == list(NAMES)
    assert set(statuses_in(begun.out).values()) == {"ok"}
    assert offences(begun.out) == []


@pytest.mark.parametrize("make", KINDS)
def test_masks_are_drawn_and_judged_when_other_files_were_put_beside_the_source(tmp_path: Path, make: Make):
    begun = begin(tmp_path, make)
    runs.run(begun.uri, begun.out)
    additions(begun.source)
    assert len(list(overlays(open_storage(str(begun.out))))) == 2
    images = open_annotations(begun.out)
    assert [len(images[index].read_pixels()) > 0 for index in range(len(images))] == [True, True]


# What vanishes.


def test_image_has_a_failed_row_when_its_source_does_not_give_it(tmp_path: Path):
    begun = begin(tmp_path, folder)
    job, plan = runs.begin(begun.uri, begun.out)
    run_local(replace(job, source=Forgetful(job.source)), plan, lambda _: None)
    assert statuses_in(begun.out) == {"a.png": "ok", "b.png": "failed", "c.png": "failed"}
    job = replace(job, source=Forgetful(job.source))
    run_local(job, open_finished_run(job.ledger.storage).retries(), lambda _: None)
    assert statuses_in(begun.out) == {"a.png": "ok", "b.png": "failed", "c.png": "failed"}
    rows = read_parquet((begun.out / "images/part-00001-retry-1.parquet").read_bytes()).to_pylist()
    assert [(row["error_step"], row["error"]) for row in rows] == [("fetch", "missing from the source now")]
    assert offences(begun.out) == []


@dataclass(frozen=True)
class Forgetful:
    """A source that gives no image at all."""

    source: Source

    @property
    def uri(self) -> str:
        return self.source.uri

    @property
    def planned(self) -> PlannedSource:
        return self.source.planned

    def plan(self, images_per_shard: int) -> Iterator[Shard]:
        return self.source.plan(images_per_shard)

    def read(self, shard: Shard, left_out: Counter[str] | None = None) -> Iterator[ImageRecord]:
        yield from ()


def test_failed_row_of_a_tar_stays_when_nothing_comes_in_its_place(tmp_path: Path):
    source, out = tmp_path / "x.tar", tmp_path / "out"
    whole = tar_bytes({"a.png": picture(0)})
    source.write_bytes(whole[: 512 * (2 + len(picture(0)) // 512)])  # the end marker is missing
    runs.run(source, out)
    assert statuses_in(out) == {"x.tar/a.png": "ok", "x.tar": "failed"}
    source.write_bytes(whole)
    runs.retry(out)
    assert statuses_in(out) == {"x.tar/a.png": "ok", "x.tar": "failed"}
    (row,) = read_parquet((out / "images/part-00000-retry-1.parquet").read_bytes()).to_pylist()
    assert row["error"].startswith("the archive can be read, but no image is in it besides those")
    assert offences(out) == []


def test_tar_without_images_has_a_failed_row(tmp_path: Path):
    (tmp_path / "x.tar").write_bytes(tar_bytes({"labels.txt": b"1"}))
    runs.run(tmp_path / "x.tar", tmp_path / "out")
    assert statuses_in(tmp_path / "out") == {"x.tar": "failed"}
    runs.retry(tmp_path / "out")
    assert statuses_in(tmp_path / "out") == {"x.tar": "failed"}
    (tmp_path / "x.tar").write_bytes(tar_bytes({"labels.txt": b"1", "a.png": picture(0)}))
    runs.retry(tmp_path / "out")
    assert statuses_in(tmp_path / "out") == {"x.tar/a.png": "ok"}
    assert offences(tmp_path / "out") == []


def test_preview_names_the_image_that_a_tar_no_longer_has(tmp_path: Path):
    begun = begin(tmp_path, one_tar)
    (begun.source / "x.tar").write_bytes(tar_bytes({"a.png": picture(0)}))
    with pytest.raises(SourceError, match=r"x\.tar/c\.png is missing from it now"):
        list(overlays(open_storage(str(begun.out))))


# Sources that have moved.


@pytest.mark.parametrize("make", KINDS)
def test_nothing_is_done_when_the_source_is_gone(tmp_path: Path, make: Make):
    begun = begin(tmp_path, make)
    if make is manifest:
        (begun.source / "list.csv").unlink()  # its images are known by their addresses
        runs.run(begun.uri, begun.out)
        runs.retry(begun.out)
        assert set(statuses_in(begun.out).values()) == {"ok"}
        return
    before = {path: path.read_bytes() for path in begun.out.rglob("*.parquet")}
    shutil.rmtree(begun.source)
    for act in (lambda: runs.run(begun.uri, begun.out), lambda: runs.retry(begun.out)):
        with pytest.raises(
            SourceError, match="no longer there: if they have moved, give their new place with --source"
        ):
            act()
    assert {path: path.read_bytes() for path in begun.out.rglob("*.parquet")} == before


@pytest.mark.parametrize("make", KINDS)
def test_run_goes_on_where_its_source_has_moved_to(tmp_path: Path, make: Make):
    begun = begin(tmp_path, make)
    moved = tmp_path / "elsewhere" / "moved"
    moved.parent.mkdir()
    begun.source.rename(moved)
    new = str(moved / begun.name)
    runs.run(begun.uri, begun.out, moved_to=new)
    shards = runs.retry(begun.out, moved_to=new)
    assert len(shards) == 1
    assert sorted(Path(image_id).name for image_id in statuses_in(begun.out)) == list(NAMES)
    assert set(statuses_in(begun.out).values()) == {"ok"}
    assert offences(begun.out) == []
    # Each row says where its image was read.
    assert sum(uri.startswith(f"{moved}/") for uri in source_uris(begun.out)) == (1 if make is one_tar else 2)
    assert len(list(overlays(open_storage(str(begun.out)), moved_to=new))) == 3
    images = open_annotations(begun.out, moved_to=new)
    assert [len(images[index].read_pixels()) > 0 for index in range(3)] == [True, True, True]


def test_addresses_outside_the_folder_of_a_manifest_stay_when_it_has_moved(tmp_path: Path):
    lists, out = tmp_path / "lists", tmp_path / "out"
    lists.mkdir()
    for path in (tmp_path / "a.png", lists / "b.png", lists / "c.png"):
        path.write_bytes(picture(0))
    (lists / "list.csv").write_text(f"uri\n{tmp_path}/a.png\nb.png\n{lists}/c.png\n")
    runs.begin(lists / "list.csv", out)
    lists.rename(tmp_path / "moved")
    runs.run(lists / "list.csv", out, moved_to=str(tmp_path / "moved" / "list.csv"))
    assert set(statuses_in(out).values()) == {"ok"}
    assert sorted(source_uris(out)) == [f"{tmp_path}/{name}" for name in ("a.png", "moved/b.png", "moved/c.png")]


@pytest.mark.parametrize("make", [one_tar, tar_pattern, one_parquet, manifest])
def test_source_that_has_moved_is_refused_under_another_name(tmp_path: Path, make: Make):
    begun = begin(tmp_path, make)
    with pytest.raises(
        ConfigError, match=f"--source .*: give the new folder followed by /{begun.name.replace('*', '[*]')}"
    ):
        runs.retry(begun.out, moved_to=str(begun.source / "other.tar"))


def test_moved_source_may_be_relative_or_have_odd_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    begun = begin(tmp_path, folder)
    begun.source.rename(tmp_path / "Ümläut \\x41")
    monkeypatch.chdir(tmp_path)
    runs.retry(begun.out, moved_to="Ümläut \\x41")
    assert statuses_in(begun.out) == {"a.png": "ok", "b.png": "ok"}


@pytest.mark.s3
@pytest.mark.parametrize("make", [folder, tars, parquet, manifest, tar_pattern])
def test_run_goes_on_in_s3_where_its_source_has_moved_to(
    tmp_path: Path, moto: MotoServer, bucket: str, monkeypatch: pytest.MonkeyPatch, make: Make
):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", moto.url)
    begun = begin(tmp_path, make)
    s3 = open_storage(f"s3://{bucket}/deep/moved")
    for path in begun.source.iterdir():
        s3.put(path.name, path.read_bytes())
    shutil.rmtree(begun.source)
    new = f"{s3.uri}/{begun.name}".rstrip("/")
    runs.run(begun.uri, begun.out, moved_to=new)
    runs.retry(begun.out, moved_to=new)
    assert set(statuses_in(begun.out).values()) == {"ok"}
    assert len(statuses_in(begun.out)) == 3
    assert sum(uri.startswith(f"{s3.uri}/") for uri in source_uris(begun.out)) == 2
    if make is not manifest:
        with pytest.raises(SourceError, match="no longer there"):
            runs.retry(begun.out, moved_to=f"s3://{bucket}/nowhere/{begun.name}".rstrip("/"))


@pytest.mark.s3
def test_tars_in_s3_are_read_as_planned_when_a_picture_was_put_beside_them(
    tmp_path: Path, moto: MotoServer, bucket: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", moto.url)
    source = open_storage(f"s3://{bucket}/tars")
    whole = tar_bytes(IMAGES)
    source.put("x.tar", whole[:700])
    runs.run(source.uri, tmp_path / "out")
    source.put("x.tar", whole)
    source.put("0.png", picture(5))
    runs.retry(tmp_path / "out")
    assert statuses_in(tmp_path / "out") == {f"x.tar/{name}": "ok" for name in NAMES}
    assert not (tmp_path / "out" / masks_key("00001")).exists()
