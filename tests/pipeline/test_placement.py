"""Workers per machine, and the CPUs and threads of each."""

import pytest

from maskmill.model.errors import ConfigError, DeviceError
from maskmill.pipeline.errors import RunFailedError
from maskmill.pipeline.placement import Machine, Placement, has_labels, parse_labels, place

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


@pytest.mark.parametrize(
    ("machines", "gpus", "expected"),
    [
        ([{"CPU": 16, "GPU": 2}], 0.5, Placement(4, cpus=4, gpus=0.5)),
        ([{"CPU": 16, "GPU": 2}], 0.3, Placement(6, cpus=2, gpus=0.3)),
        ([{"CPU": 16, "GPU": 1}], 0.6, Placement(1, cpus=16, gpus=0.6)),
        ([GPUS_1, GPUS_4], 0.5, Placement(10, cpus=1, gpus=0.5)),
        ([{"CPU": 4}], 0.5, Placement(2, cpus=2, gpus=0)),
    ],
)
def test_gpu_has_as_many_workers_as_fit_when_a_worker_takes_a_fraction(
    machines: list[Machine], gpus: float, expected: Placement
):
    assert place(machines, "auto", gpus) == expected


@pytest.mark.parametrize("gpus", [1, 0.5, 0.3, 0.1])
@pytest.mark.parametrize("machine", [GPUS_1, GPUS_4, {"CPU": 3, "GPU": 2}, {"CPU": 256, "GPU": 8}])
def test_threads_of_all_workers_never_exceed_the_cpus_of_their_machine(machine: Machine, gpus: float):
    """Whatever other machines are in the cluster."""
    workers = place([machine], "cuda", gpus).workers
    for others in ([], [GPUS_1], [GPUS_4], [{"CPU": 1, "GPU": 16}]):
        threads = place([machine, *others], "cuda", gpus).threads_on(machine)
        assert threads == max(1, machine["CPU"] // workers)


@pytest.mark.parametrize(
    ("machines", "device", "expected"),
    [
        ([], "cuda", Placement(8, cpus=0, gpus=1)),
        ([{"CPU": 0}], "cpu", Placement(8, cpus=2, gpus=0)),
        ([GPUS_4], "auto", Placement(8, cpus=2, gpus=1)),
        ([{"CPU": 64, "GPU": 16}], "auto", Placement(8, cpus=4, gpus=1)),
    ],
)
def test_number_of_workers_can_be_given(machines: list[Machine], device: str, expected: Placement):
    assert place(machines, device, workers=8) == expected


def test_worker_on_a_cpu_has_the_threads_that_it_requested():
    assert place([{"CPU": 9}, {"CPU": 4}], "auto").threads_on({"CPU": 9}) == 2


def test_worker_has_a_thread_when_its_machine_has_fewer_cpus_than_gpus():
    machine = {"CPU": 4, "GPU": 8}
    assert place([machine], "auto").threads_on(machine) == 1


def test_gpu_is_refused_when_the_cluster_has_none():
    with pytest.raises(DeviceError, match="no GPU"):
        place([{"CPU": 4}], "cuda")


def test_device_must_be_given_when_no_machine_shows_which_one_is_meant():
    with pytest.raises(DeviceError, match="choose --device cuda or --device cpu"):
        place([{"CPU": 0}], "auto", workers=8)


def test_cluster_is_refused_when_it_has_nothing_to_offer():
    with pytest.raises(RunFailedError, match="CPU"):
        place([{"CPU": 0}], "auto")


SPOT_L4 = {"ray.io/market-type": "spot", "ray.io/accelerator-type": "L4"}


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("", True),
        ("ray.io/market-type=spot", True),
        ("ray.io/market-type=on-demand", False),
        ("ray.io/market-type=spot,ray.io/accelerator-type=L4", True),
        ("ray.io/market-type=spot, ray.io/accelerator-type=H100", False),
        ("ray.io/accelerator-type=in(H100, L4)", True),
        ("ray.io/accelerator-type=in(H100,A100),ray.io/market-type=spot", False),
        ("ray.io/accelerator-type=!in(H100,A100)", True),
        ("ray.io/accelerator-type=!L4", False),
        ("team=red", False),
        ("team=!red", True),
    ],
)
def test_machine_matches_when_all_conditions_hold(text: str, matches: bool):
    assert has_labels(SPOT_L4, parse_labels(text)) == matches


@pytest.mark.parametrize("text", ["spot", "market=", "=spot", "a=b,", "a=in()", "a=in(b", "a=b c"])
def test_labels_are_refused_when_they_cannot_be_read(text: str):
    with pytest.raises(ConfigError, match="write KEY=VALUE"):
        parse_labels(text)
