"""Workers per machine."""

import pytest

from maskmill.model.errors import DeviceError
from maskmill.pipeline.errors import RunFailedError
from maskmill.pipeline.placement import Placement, place


@pytest.mark.parametrize(
    ("nodes", "device", "expected"),
    [
        ([{"CPU": 2}], "auto", Placement(1, cpus=2, gpus=0, threads=2)),
        ([{"CPU": 1}], "auto", Placement(1, cpus=1, gpus=0, threads=1)),
        ([{"CPU": 9}, {"CPU": 4}, {"memory": 1e9}], "cpu", Placement(6, cpus=2, gpus=0, threads=2)),
        ([{"CPU": 16, "GPU": 2}, {"CPU": 8}], "auto", Placement(2, cpus=1, gpus=1, threads=12)),
        ([{"CPU": 16, "GPU": 2}], "cuda", Placement(2, cpus=1, gpus=1, threads=8)),
        ([{"CPU": 16, "GPU": 2}], "cpu", Placement(8, cpus=2, gpus=0, threads=2)),
    ],
)
def test_workers_share_the_machines_without_oversubscribing(
    nodes: list[dict[str, float]], device: str, expected: Placement
):
    assert place(nodes, device) == expected


def test_gpu_is_refused_when_the_cluster_has_none():
    with pytest.raises(DeviceError, match="no GPU"):
        place([{"CPU": 4}], "cuda")


def test_cluster_is_refused_when_it_has_nothing_to_offer():
    with pytest.raises(RunFailedError, match="CPU"):
        place([{"CPU": 0}], "auto")
