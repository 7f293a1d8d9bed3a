"""`_summary-<n>.json`: one per driver that ends, whatever ends it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from maskmill.pipeline.errors import RunStoppedError, StorageError
from maskmill.pipeline.finished import open_finished_run
from maskmill.pipeline.progress import Progress
from maskmill.pipeline.records import process_name
from maskmill.pipeline.storage import LocalStorage, open_storage
from maskmill.pipeline.summary import PACKAGES, read_summaries, summarised
from maskmill.pipeline.verify import verify
from tests.fakes import picture
from tests.runs import run


def test_summary_counts_images_workers_and_time(tmp_path: Path):
    with summarised(LocalStorage(tmp_path), "abc") as summary:
        summary.add_image(Progress(0, "a", "rle", "ok", 3, 500.0))
        summary.add_image(Progress(0, "b", "decode", "failed", 0, 1500.0))
        summary.add_worker(10.0, gpus=1)
        summary.add_worker(5.0, gpus=0)
    (written,) = read_summaries(LocalStorage(tmp_path))
    assert (tmp_path / "_summary-0.json").exists()
    assert written["images"] == {"ok": 1, "failed": 1, "quarantined": 0}
    names = ("identity", "driver", "outcome", "masks", "image_seconds", "worker_seconds", "gpu_seconds")
    assert [written[name] for name in names] == ["abc", process_name(), "finished", 3, 2.0, 15.0, 10.0]
    assert written["began"] <= written["ended"]
    assert set(written["versions"]) == {"python", *PACKAGES}


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (RunStoppedError(15), "stopped; finished work is kept: run the same command again to resume"),
        (ZeroDivisionError("by nothing"), "ZeroDivisionError: by nothing"),
    ],
)
def test_summary_names_the_error_that_ended_the_driver(tmp_path: Path, error: Exception, outcome: str):
    with pytest.raises(type(error)), summarised(LocalStorage(tmp_path), ""):
        raise error
    assert [summary["outcome"] for summary in read_summaries(LocalStorage(tmp_path))] == [outcome]


def test_every_driver_has_its_own_summary_when_several_end_at_once(tmp_path: Path):
    def drive(number: int) -> None:
        with summarised(LocalStorage(tmp_path), str(number)):
            pass

    with ThreadPoolExecutor(12) as threads:
        list(threads.map(drive, range(12)))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"_summary-{number}.json" for number in range(12))
    assert {summary["identity"] for summary in read_summaries(LocalStorage(tmp_path))} == set(map(str, range(12)))


@dataclass(frozen=True)
class FullStorage(LocalStorage):
    def create(self, key: str, data: bytes) -> bool:
        raise StorageError("no space left on device")


def test_run_is_complete_when_its_summary_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with summarised(FullStorage(tmp_path), ""):
        pass
    assert caplog.messages == ["the summary of this driver was not written: no space left on device"]


def test_summary_belongs_to_a_run_when_it_is_verified_and_read(tmp_path: Path):
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "a.png").write_bytes(picture(0))
    run(tmp_path / "photographs", tmp_path / "out")
    storage = open_storage(str(tmp_path / "out"))
    with summarised(storage, "abc"):
        pass
    assert [check.offences for check in verify(storage) if check.offences] == []
    assert [summary["identity"] for summary in open_finished_run(storage).summaries()] == ["abc"]
    (tmp_path / "out/_summary-x.json").touch()
    offences = [offence for check in verify(storage) for offence in check.offences]
    assert offences == ["_summary-x.json: does not belong to the run"]


def test_damaged_summary_is_named(tmp_path: Path):
    (tmp_path / "_summary-3.json").write_text("{")
    with pytest.raises(StorageError, match=r"_summary-3\.json: damaged .*: delete it"):
        read_summaries(LocalStorage(tmp_path))
