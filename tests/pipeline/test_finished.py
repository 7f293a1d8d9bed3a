"""A run read back: every image, its masks as they were made, and no more of the output than is needed."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from maskmill.model.errors import MaskmillError
from maskmill.pipeline.config import DEFAULT_DECODING, PRESETS, RunConfig
from maskmill.pipeline.errors import ObjectError, RunMismatchError, UnknownImageError
from maskmill.pipeline.finished import Run, open_finished_run
from maskmill.pipeline.images import decode_image
from maskmill.pipeline.ledger import Identity
from maskmill.pipeline.parts import masks_key
from maskmill.pipeline.plan import encode_plan
from maskmill.pipeline.records import Shard, StepTimer
from maskmill.pipeline.sources import PlannedSource
from maskmill.pipeline.storage import LocalStorage, open_storage
from maskmill.pipeline.table import ROWS_PER_GROUP, encode_part
from tests.fakes import FAIL, image_masks, image_result, picture
from tests.runs import ENGINE, begin, retry, run

if TYPE_CHECKING:
    from testing.s3_servers import MotoServer

FAILED = "c.png"


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    (folder / "b").mkdir(parents=True)
    names = ["a.png", "b/1.png", "b/2.png", FAILED, "d.png"]
    for seed, name in enumerate(names):
        (folder / name).write_bytes(picture(seed, FAIL if name == FAILED else (0, 0, 0)))
    return folder


@pytest.fixture
def finished(photographs: Path, tmp_path: Path) -> Run:
    run(photographs, tmp_path / "out")
    return open_finished_run(LocalStorage(tmp_path / "out"))


def test_images_come_back_with_the_masks_that_were_made(finished: Run, photographs: Path):
    for name in ("a.png", "b/1.png", "d.png"):
        pixels = decode_image((photographs / name).read_bytes(), DEFAULT_DECODING).pixels
        made = ENGINE.generate(ENGINE.prepare(pixels), StepTimer())
        image = finished[name]
        assert (image.image_id, image.status, image.error) == (name, "ok", None)
        assert (image.height, image.width) == pixels.shape[:2]
        assert image.source_uri == f"{photographs}/{name}"
        assert image.rle_counts == made.rle_counts
        assert image.dropped == made.dropped
        np.testing.assert_array_equal(image.masks, np.moveaxis(pixels > pixels.mean(axis=(0, 1)), 2, 0))
        for column in ("area", "boxes", "scores", "stability_score", "points", "crop_boxes"):
            array, expected = getattr(image, column), getattr(made, column)
            assert array.dtype == expected.dtype
            np.testing.assert_array_equal(array, expected)


def test_run_is_a_mapping_of_all_images_that_ended(finished: Run):
    assert len(finished) == 5
    assert list(finished) == ["a.png", "b/1.png", "b/2.png", FAILED, "d.png"]
    assert [image.image_id for image in finished.values()] == list(finished)
    assert "d.png" in finished
    assert "e.png" not in finished
    assert finished.get("e.png") is None


def test_failed_image_says_why_and_has_no_masks(finished: Run):
    image = finished[FAILED]
    assert image.status == "failed"
    assert image.error
    assert "no masks" in image.error
    assert len(image) == 0
    assert image.masks.shape == (0, 0, 0)
    assert image.boxes.shape == (0, 4)


@pytest.mark.parametrize("image_id", ["e.png", "", "a", "b", "a.png/x", "photographs"])
def test_unknown_image_is_refused_by_name(finished: Run, image_id: str):
    with pytest.raises(UnknownImageError, match=f"out: no image '{image_id}' in this run, or it is not done yet") as e:
        finished[image_id]
    assert isinstance(e.value, MaskmillError)
    assert isinstance(e.value, KeyError)
    assert not str(e.value).startswith('"')


def test_images_that_a_retry_mended_come_from_the_retry(finished: Run, photographs: Path, tmp_path: Path):
    (photographs / FAILED).write_bytes(picture(3))
    retry(tmp_path / "out")
    image = finished[FAILED]
    assert image.status == "ok"
    assert len(image) == 3
    assert sorted(finished) == ["a.png", "b/1.png", "b/2.png", FAILED, "d.png"]
    assert len(finished["b/2.png"]) == 3  # of the same shard


def test_tables_are_data_sets_with_pushdown(finished: Run):
    assert finished.images.count_rows() == 5
    assert finished.masks.count_rows() == 12
    large = finished.masks.to_table(columns=["image_id", "area"], filter=pc.field("area") > 40)
    assert 0 < len(large) < 12
    assert large["area"].to_pylist() == [area for area in large["area"].to_pylist() if area > 40]
    assert finished.images.to_table(filter=pc.field("status") == "failed")["image_id"].to_pylist() == [FAILED]


def test_masks_come_part_by_part(finished: Run):
    parts = list(finished.mask_parts(["image_id", "area"]))
    assert len(parts) == len(finished.commit_times()) > 1
    assert pa.concat_tables(parts).equals(finished.masks.to_table(columns=["image_id", "area"]))


def test_commit_times_are_those_of_the_parts(finished: Run, tmp_path: Path):
    os.utime(tmp_path / "out" / masks_key("00001"), (1.5e9, 1.5e9))
    assert finished.commit_times()["00001"] == 1.5e9


def test_run_that_is_still_going_has_what_is_done(photographs: Path, tmp_path: Path):
    job, plan = begin(photographs, tmp_path / "out")
    going = open_finished_run(job.ledger.storage)
    assert len(going) == 0
    assert going.masks.to_table().num_rows == going.images.to_table().num_rows == 0
    # A driver that was killed after the commit, before it derived the images part.
    pixels = decode_image((photographs / "a.png").read_bytes(), DEFAULT_DECODING).pixels
    masks = np.moveaxis(pixels > pixels.mean(axis=(0, 1)), 2, 0)
    job.ledger.commit(plan[0], encode_part(plan[0], [image_result("a.png", masks)], job.ledger.identity))
    assert list(going) == ["a.png"]
    assert len(going["a.png"]) == 3
    with pytest.raises(UnknownImageError, match="not done yet"):
        going["d.png"]


def test_images_of_tars_are_found(tmp_path: Path):
    for tar in ("x/1.tar", "x/11.tar"):
        (tmp_path / "tars" / tar).parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(tmp_path / "tars" / tar, "w") as archive:
            for number in range(2):
                data = picture(number + len(tar))
                info = tarfile.TarInfo(f"in/{number}.png")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    (tmp_path / "tars" / "damaged.tar").write_bytes(b"no tar")
    run(tmp_path / "tars", tmp_path / "out")
    finished = open_finished_run(LocalStorage(tmp_path / "out"))
    ids = [f"{tar}/in/{number}.png" for tar in ("x/1.tar", "x/11.tar") for number in range(2)]
    assert sorted(finished) == ["damaged.tar", *ids]
    for image_id in ids:
        assert finished[image_id].source_uri.endswith(image_id)
    assert finished["damaged.tar"].status == "failed"


def test_folder_without_a_run_is_refused(tmp_path: Path):
    with pytest.raises(RunMismatchError, match="not an output of maskmill"):
        open_finished_run(LocalStorage(tmp_path))


def test_damaged_part_is_named(finished: Run, tmp_path: Path):
    path = tmp_path / "out" / masks_key("00000")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ObjectError, match=r"out/masks/part-00000\.parquet: damaged"):
        finished["a.png"]
    assert len(finished["d.png"]) == 3


def test_mask_of_another_size_is_named(finished: Run):
    masks = image_masks(np.ones((2, 4, 6), np.bool_))
    wrong = image_result("a.png", np.ones((2, 4, 6), np.bool_))
    object.__setattr__(wrong.outcome, "height", masks.height + 1)
    path = Path(finished.storage.uri) / masks_key("00000")
    path.write_bytes(encode_part(Shard(0, ""), [wrong], "0" * 64))
    with pytest.raises(ObjectError, match=r"a\.png, mask 0: the RLE covers 24 pixels of 30"):
        finished["a.png"]


def test_run_is_picklable(finished: Run):
    copied = pickle.loads(pickle.dumps(finished))
    np.testing.assert_array_equal(copied["d.png"].masks, finished["d.png"].masks)


class WatchedStorage(LocalStorage):
    """A folder that tells how many bytes of each object are read."""

    def __init__(self, root: Path, told: Counter[str]) -> None:
        super().__init__(root)
        object.__setattr__(self, "told", told)
        self.told: Counter[str]

    def read(self, key: str) -> bytes:
        data = super().read(key)
        self.told[key] += len(data)
        return data

    def open(self, key: str) -> BinaryIO:
        return io.BufferedReader(_WatchedFile(self.root / key, key, self.told))


class _WatchedFile(io.FileIO):
    def __init__(self, path: Path, key: str, told: Counter[str]) -> None:
        super().__init__(path)
        self._key, self._told = key, told

    def readinto(self, buffer: Any, /) -> int:
        size = super().readinto(buffer)
        self._told[self._key] += size
        return size


def test_one_image_is_read_without_the_rest_of_the_table(tmp_path: Path):
    storage = LocalStorage(tmp_path)
    config = RunConfig("mini", "mini", PRESETS["mini"])
    storage.create("_run.json", Identity("/photographs", "0" * 64, config).to_json().encode())
    ids = [f"{number}.png" for number in range(8)]
    shards = [Shard(0, "/photographs", tuple(ids[:4])), Shard(1, "/photographs", tuple(ids[4:]))]
    storage.create("_plan.parquet", encode_plan(PlannedSource("folder", "/photographs", "/photographs"), shards))
    noise = np.random.default_rng(0).random((ROWS_PER_GROUP, 24, 18)) > 0.5  # a row group for each image
    parts = [encode_part(shard, [image_result(name, noise) for name in shard.image_ids or ()], "") for shard in shards]
    for shard, part in zip(shards, parts, strict=True):
        storage.create(masks_key(shard.name), part)
    read: Counter[str] = Counter()
    image = open_finished_run(WatchedStorage(tmp_path, read))["5.png"]
    assert len(image) == ROWS_PER_GROUP
    assert {key for key in read if key.startswith("masks")} == {"masks/part-00001.parquet"}
    assert 0 < read["masks/part-00001.parquet"] < len(parts[1]) / 2


@pytest.mark.s3
def test_run_on_s3_is_read_as_one_on_disk(
    finished: Run, bucket: str, moto: MotoServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", moto.url)
    on_s3 = open_storage(f"s3://{bucket}/out")
    for item in finished.storage.list():
        on_s3.put(item.key, finished.storage.read(item.key))
    run_on_s3 = open_finished_run(on_s3)
    assert list(run_on_s3) == list(finished)
    np.testing.assert_array_equal(run_on_s3["d.png"].masks, finished["d.png"].masks)
    for table in ("images", "masks"):
        a, b = (getattr(opened, table).to_table().sort_by("image_id") for opened in (run_on_s3, finished))
        assert a.equals(b)
    assert run_on_s3.commit_times().keys() == finished.commit_times().keys()
    assert all(run_on_s3.commit_times().values())
    wide = run_on_s3.masks.to_table(columns=["area"], filter=pc.field("image_id") == "a.png")
    assert len(wide) == 3
