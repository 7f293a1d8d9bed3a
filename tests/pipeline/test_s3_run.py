"""Whole runs from S3 to S3, behind a network that fails every fifth request and loses answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from maskmill.pipeline import cluster
from maskmill.pipeline.storage import LocalStorage, open_storage
from maskmill.pipeline.verify import verify
from tests.fakes import FAIL, picture
from tests.runs import Tables, begin, run

if TYPE_CHECKING:
    from testing.s3_servers import FaultProxy

pytestmark = [pytest.mark.s3, pytest.mark.ray, pytest.mark.slow]


def test_tables_are_those_of_a_run_on_disk_when_every_fifth_request_fails(
    bucket: str, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from testing.s3_servers import NOISY, random_faults

    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
    (tmp_path / "photographs").mkdir()
    on_disk, on_s3 = LocalStorage(tmp_path / "photographs"), open_storage(f"s3://{bucket}/photographs")
    for number in range(12):
        content = picture(number, FAIL if number == 3 else (0, 0, 0)) if number != 5 else b"no image"
        for storage in (on_disk, on_s3):
            storage.put(f"{number:02d} é+%.png", content)
    run(on_disk.uri, tmp_path / "out")

    faults, told = random_faults(0.2, 1, NOISY), []
    proxy.behave(lambda request: told.append(fault := faults(request)) or fault)
    job, plan = begin(on_s3.uri, f"s3://{bucket}/out")
    cluster.run(job, plan, lambda _: None)
    proxy.behave()

    out = open_storage(f"s3://{bucket}/out")
    assert Tables.of(out) == Tables.of(open_storage(str(tmp_path / "out")))
    assert [offence for check in verify(out) for offence in check.offences] == []
    assert sum(fault is not None for fault in told) >= 10
