"""Workers per machine, and the CPUs and threads of each."""

import pytest

from maskmill.model.errors import DeviceError
from maskmill.pipeline.errors import RunFailedError
from maskmill.pipeline.placement import Machine, Placement, place

GPUS_1, GPUS_4 = {"CPU": 64, "GPU": 1}, {"CPU": 8, "GPU": 4}


@pytest.mark.parametrize(
    ("machines", "device", "expected"),
    [
        ([{"CPU": 2}], "auto", Placement(1, cpus=2, gpus=0)),
        ([{"CPU": 1}], "auto", Placement(1, cpus=1, gpus=0)),
        ([{"CPU": 9}, {"CPU": 4}, {"memory": 1e9}], "cpu", Placement(6, cpus=2, gpus=0)),
        ([{"CPU": 16, "GPU": 2}, {"CPU": 8}], "auto", Placement(2, cpus=8, gpus=1)),
        ([{"CPU": 16, "GPU": 2}], "cuda", Placement(2, cpus=8, gpus=1)),
        ([{"CPU": 16, "GPU": 2}], "cpu", Placement(8, cpus=2, gpus=0)),
        ([{"CPU": 8, "GPU": 1}, *[{"CPU": 64}] * 10], "auto", Placement(1, cpus=8, gpus=1)),
        ([GPUS_1, GPUS_4], "auto", Placement(5, cpus=2, gpus=1)),
        ([{"CPU": 4, "GPU": 8}], "auto", Placement(8, cpus=0, gpus=1)),
        ([{"GPU": 1}], "auto", Placement(1, cpus=0, gpus=1)),
    ],
)
def test_workers_share_the_machines_without_oversubscribing(machines: list[Machine], device: str, expected: Placement):
    placement = place(machines, device)
    assert placement == expected
    for machine in machines:
        on_machine = machine.get("GPU", 0) if placement.gpus else machine.get("CPU", 0) // placement.cpus
        assert on_machine * placement.cpus <= machine.get("CPU", 0), "Ray can place them"


def test_worker_has_the_threads_that_it_requested():
    assert place([{"CPU": 9}, {"CPU": 4}], "auto").threads_on({"CPU": 9}) == 2
    assert place([{"CPU": 8, "GPU": 1}, *[{"CPU": 64}] * 10], "auto").threads_on({"CPU": 8, "GPU": 1}) == 8
    assert place([GPUS_1, GPUS_4], "auto").threads_on(GPUS_1) == 2


def test_worker_has_no_more_threads_than_its_share_of_a_machine_that_came_later():
    assert place([GPUS_1], "auto").threads_on(GPUS_4) == 2


def test_worker_has_a_thread_when_its_machine_has_fewer_cpus_than_gpus():
    machine = {"CPU": 4, "GPU": 8}
    assert place([machine], "auto").threads_on(machine) == 1


def test_gpu_is_refused_when_the_cluster_has_none():
    with pytest.raises(DeviceError, match="no GPU"):
        place([{"CPU": 4}], "cuda")


def test_cluster_is_refused_when_it_has_nothing_to_offer():
    with pytest.raises(RunFailedError, match="CPU"):
        place([{"CPU": 0}], "auto")
