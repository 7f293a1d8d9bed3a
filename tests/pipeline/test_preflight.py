"""The checks before a run, each made to fail; without Ray."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from maskmill.model.checkpoint import EMBEDDED_WEIGHTS, file_sha256
from maskmill.pipeline.placement import Placement
from maskmill.pipeline.preflight import (
    MachineCheck,
    RunInputs,
    client_problem,
    find_placement,
    open_inputs,
    version_problem,
)
from maskmill.pipeline.sources import ALL_NAMES, NameFilter
from maskmill.pipeline.storage import LocalStorage, open_storage
from testing.s3_servers import FaultProxy
from tests.fakes import picture
from tests.runs import begin

VERSIONS = {"python": "3.11.7", "maskmill": "0.1.0", "ray": "2.60.0", "torch": "2.13.0"}


@pytest.fixture
def inputs(tmp_path: Path) -> RunInputs:
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for number in range(3):
        (photographs / f"{number}.png").write_bytes(picture(number))
    return RunInputs(str(photographs), ALL_NAMES, str(tmp_path / "out"), "mini", None)


def machine(inputs: RunInputs, **changes: Any) -> list[str]:
    """The problems of a machine that gets the check from a sound driver."""
    check, problems = open_inputs(inputs)
    assert problems == []
    return list(pickle.loads(pickle.dumps(replace(check, **changes))).problems())


def only(problems: list[str]) -> str:
    [problem] = problems
    assert "\n" not in problem
    return problem


def test_sound_machine_has_no_problem_and_nothing_is_left_behind(inputs: RunInputs):
    assert machine(inputs) == []
    assert list(Path(inputs.out).iterdir()) == []


def test_images_that_a_machine_cannot_read_are_found(inputs: RunInputs):
    check, _ = open_inputs(inputs)
    for image in Path(inputs.source).iterdir():
        image.unlink()
    problem = only(list(check.problems()))
    assert problem.startswith(f"{inputs.source}: none of its first images can be read (")
    assert problem.endswith(": every machine must be able to read SOURCE: s3:// with credentials, or a shared folder")


def test_one_unreadable_image_is_no_problem(inputs: RunInputs):
    check, _ = open_inputs(inputs)
    Path(inputs.source, "0.png").unlink()
    assert list(check.problems()) == []


def test_output_that_is_another_folder_on_the_machine_is_found(inputs: RunInputs, tmp_path: Path):
    (tmp_path / "other").mkdir()
    problem = only(machine(inputs, output=LocalStorage(tmp_path / "other"), marker="_probe-0"))
    assert problem.startswith(f"{tmp_path}/other: not the folder that the driver writes to, but another of this name: ")


def test_output_that_ignores_create_if_absent_is_found(
    inputs: RunInputs, bucket: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
    store = open_storage(f"s3://{bucket}/out")
    assert machine(inputs, output=store) == []
    proxy.behave(ignores_conditions=("puts", "completes"))
    assert "this store does not honour create-if-absent" in only(machine(inputs, output=store))


def test_output_that_cannot_be_reached_is_found(inputs: RunInputs, bucket: str, proxy: FaultProxy):
    problems = machine(inputs, output=open_storage(f"s3://{bucket}-missing/out"))
    assert "every machine must be able to write OUT: s3:// with credentials" in only(problems)


def test_missing_checkpoint_is_found(inputs: RunInputs, tmp_path: Path):
    problem = only(machine(inputs, checkpoint=tmp_path / "nothing.pth"))
    assert problem == (
        f"{tmp_path}/nothing.pth: no such checkpoint: put the checkpoint of the run at this path on every machine"
    )


def test_other_weights_are_found(inputs: RunInputs, tmp_path: Path):
    (tmp_path / "other.pth").write_bytes(b"other")
    problem = only(machine(inputs, checkpoint=tmp_path / "other.pth"))
    assert f"but the run has {file_sha256(EMBEDDED_WEIGHTS)}: put the checkpoint of the run" in problem


def test_weights_must_be_those_of_the_run_that_is_resumed(inputs: RunInputs):
    begin(inputs.source, inputs.out, weights="f" * 64)
    check, problems = open_inputs(inputs)
    assert problems == []
    assert f"but the run has {'f' * 64}" in only(list(check.problems()))


def test_gpu_that_torch_cannot_use_is_found(inputs: RunInputs):
    import torch

    if torch.cuda.is_available():
        pytest.skip("a CUDA device")
    problem = only(machine(inputs, gpus=1))
    assert problem.startswith(f"torch {torch.__version__} cannot use the GPUs that Ray counts (")
    assert problem.endswith(": compare with nvidia-smi, and install a torch that fits the driver of the GPU")


def test_gpu_that_works_is_no_problem(inputs: RunInputs, gpu: str):
    assert machine(inputs, gpus=1) == []


@pytest.mark.parametrize(
    ("changes", "start"),
    [
        ({"source": "/nowhere"}, "/nowhere: no such file or folder"),
        ({"names": NameFilter(("nothing",))}, ""),
        ({"out": "/proc/nothing"}, "/proc/nothing: "),
        ({"out": "ftp://server/out"}, "ftp://"),
        ({"model": "vit_b"}, "vit_b has no embedded weights"),
    ],
)
def test_inputs_that_the_driver_cannot_open_are_found(inputs: RunInputs, changes: dict[str, Any], start: str):
    check, problems = open_inputs(replace(inputs, **changes))
    assert only(problems).startswith(start)
    assert list(check.problems()) == []  # a machine does not repeat them


def test_versions_that_differ_from_the_driver_are_found():
    assert version_problem(VERSIONS, VERSIONS) is None
    found = version_problem(VERSIONS | {"torch": "2.9.0", "maskmill": ""}, VERSIONS)
    assert found == (
        "maskmill is missing here and 0.1.0 at the driver, torch 2.9.0 here and 2.13.0 at the driver: use one image, "
        "or the same packages, on all machines"
    )


def test_only_the_version_of_maskmill_must_be_that_of_the_client():
    assert client_problem({"maskmill": "0.1.0", "torch": "2.9.0"}, VERSIONS) is None
    problem = client_problem({"maskmill": "0.2.0"}, VERSIONS)
    assert problem
    assert problem.startswith("the client has maskmill 0.2.0 and the cluster 0.1.0: ")


SPOT = {"ray.io/market-type": "spot"}


GPU_TYPE = {"a": {"resources": {"GPU": 1}, "labels": SPOT}, "head": {"resources": {"CPU": 0}}}


@pytest.mark.parametrize(
    ("machines", "wanted", "types", "problem"),
    [
        ([{"CPU": 4.0}], {"device": "cuda"}, {}, "no GPU in this cluster"),
        ([{"memory": 1.0}], {}, {}, "no machine of this cluster has a CPU"),
        ([], {"labels": [SPOT]}, {}, "no machine of this cluster has the labels of --labels"),
        ([{"CPU": 4.0}], {"device": "cuda"}, GPU_TYPE, "machines of the type a: ask for them with --workers"),
        ([], {"device": "cuda", "labels": [SPOT]}, GPU_TYPE, "machines of the type a: ask for them with --workers"),
        ([{"CPU": 4.0}], {"workers": 8, "device": "cuda"}, {"head": {}}, "no type of the autoscaler (head)"),
        ([], {"workers": 8, "device": "cuda", "labels": [{"x": "y"}]}, GPU_TYPE, "no type of the autoscaler (a, head)"),
    ],
)
def test_resources_that_no_machine_can_have_are_found(
    inputs: RunInputs, machines: list[dict[str, float]], wanted: dict[str, Any], types: dict[str, Any], problem: str
):
    placement, found = find_placement(machines, replace(inputs, **wanted), types)
    assert placement is None
    assert found
    assert problem in found


@pytest.mark.parametrize("labels", [[], [SPOT]])
def test_type_of_the_autoscaler_that_does_not_fit_is_not_named(inputs: RunInputs, labels: list[dict[str, str]]):
    wanted = replace(inputs, device="cuda", labels=labels)
    _, found = find_placement([], wanted, {"b": {"resources": {"CPU": 8}, "labels": SPOT}})
    assert found
    assert "autoscaler" not in found


def test_resources_that_a_machine_has_are_no_problem(inputs: RunInputs):
    machines = [{"CPU": 4.0}, {"CPU": 8.0, "GPU": 2.0}]
    assert find_placement(machines, replace(inputs, gpus_per_worker=0.5), {}) == (Placement(4, 2, 0.5), None)


@pytest.mark.parametrize("types", [{}, GPU_TYPE], ids=["unknown types", "a type that fits"])
def test_machines_that_the_autoscaler_can_add_are_no_problem(inputs: RunInputs, types: dict[str, Any]):
    wanted = replace(inputs, device="cuda", labels=[SPOT], workers=8)
    assert find_placement([], wanted, types) == (Placement(8, 0, 1), None)


def test_check_without_anything_opened_has_no_problem():
    assert list(MachineCheck(None, None, None, None, None).problems()) == []
