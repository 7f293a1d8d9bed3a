"""Checks a Ray cluster before a run: runs the checks of preflight.py in the driver and on each machine."""

from __future__ import annotations

import pickle
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
import yaml
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from maskmill.model.errors import MaskmillError
from maskmill.pipeline.cluster import all_labels, machines_of, session
from maskmill.pipeline.errors import exception_line
from maskmill.pipeline.preflight import (
    PACKAGES,
    MachineCheck,
    RunInputs,
    Versions,
    client_problem,
    find_placement,
    open_inputs,
    version_problem,
    versions,
)
from maskmill.pipeline.storage import PROBE_PREFIX, Storage

MACHINE_SECONDS = 120.0  # for the answers of all machines
NAMED_MACHINES = 3  # in one line
# Ray's launcher writes it to the head. KubeRay has no such file: its node types are not known here.
LAUNCHER_FILE = Path("~/ray_bootstrap_config.yaml")


@dataclass
class Diagnosis:
    """The result of the checks. Each problem is one line."""

    versions: Versions  # of the driver
    machines: int = 0  # that were asked
    workers: int = 0
    gpus: float = 0  # that the workers would use
    problems: list[str] = field(default_factory=list[str])


def diagnose(inputs: RunInputs, address: str | None, client: Versions | None = None) -> Diagnosis:
    """Checks the driver (this process) and every machine that would run a worker.

    `client` has the versions of the machine that submitted the job. Raises RunFailedError if there is no cluster.
    """
    diagnosis = Diagnosis(versions())
    if client and (problem := client_problem(client, diagnosis.versions)):
        diagnosis.problems.append(problem)
    with session(address):
        machines = machines_of(inputs.labels)
        placement, problem = find_placement(list(machines.values()), inputs, _node_types())
        if problem:
            diagnosis.problems.append(
                f"{problem} (labels of the machines: {all_labels()})" if inputs.labels else problem
            )
        if placement:
            diagnosis.workers, diagnosis.gpus = placement.workers, placement.workers * placement.gpus
        needed = "GPU" if placement and placement.gpus else "CPU"
        working = [node for node in ray.nodes() if node["NodeID"] in machines and node["Resources"].get(needed, 0) > 0]
        diagnosis.machines = len(working)
        found: dict[str, list[str]] = {}  # problem -> machines
        for machine, problem in _problems(inputs, working, needed, diagnosis.versions):
            found.setdefault(problem, []).append(machine)
    for problem, where in found.items():
        more = f" and {len(where) - NAMED_MACHINES} more" if len(where) > NAMED_MACHINES else ""
        diagnosis.problems.append(f"{', '.join(where[:NAMED_MACHINES])}{more}: {problem}")
    return diagnosis


def _problems(
    inputs: RunInputs, nodes: list[dict[str, Any]], needed: str, driver: Versions
) -> Iterator[tuple[str, str]]:
    """Yields pairs of a machine, or the driver, and a problem."""
    check, problems = open_inputs(inputs)
    with _marker(check.output) as marker:
        check = replace(check, marker=marker)
        asked = _ask_machines(nodes, needed, check, driver)
        for problem in (*problems, *check.problems()):
            yield "the driver", problem
        yield from _answers(asked, driver)


@contextmanager
def _marker(output: Storage | None) -> Iterator[str]:
    """Writes an object to the output for the duration of the block. Yields its key, or "" if it cannot be written."""
    key = PROBE_PREFIX + uuid.uuid4().hex
    try:
        if output:
            output.create(key, b"")
    except MaskmillError:  # `check.problems` finds the reason
        yield ""
        return
    try:
        yield key
    finally:
        with suppress(MaskmillError):
            if output:
                output.delete(key)


def _node_types() -> Mapping[str, Mapping[str, Any]]:
    """The node types of the autoscaler, if the driver runs on a head that Ray's launcher has made."""
    try:
        return yaml.safe_load(LAUNCHER_FILE.expanduser().read_text(encoding="utf-8"))["available_node_types"]
    except (OSError, KeyError, TypeError, yaml.YAMLError):
        return {}


def _ask_machines(nodes: list[dict[str, Any]], needed: str, check: MachineCheck, driver: Versions) -> dict[Any, str]:
    """Starts the check on every machine. Returns the machines by their pending answers."""

    # A nested function, which Ray sends by value: a machine without maskmill, or with another version, can run it too.
    def inspect_machine(
        packages: tuple[str, ...], driver: dict[str, str], pickled: bytes
    ) -> tuple[dict[str, str], Any]:
        import pickle
        import platform
        from importlib import metadata

        found = {"python": platform.python_version()}
        for name in packages:
            try:
                found[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                found[name] = ""
        return found, list(pickle.loads(pickled).problems()) if found == driver else []

    # max_calls: its process ends after the check and frees the memory of the GPU.
    task: Any = ray.remote(max_calls=1)(inspect_machine)
    checks = [replace(check, gpus=int(node["Resources"][needed]) if needed == "GPU" else 0) for node in nodes]
    return {
        task.options(
            num_cpus=0,  # a check does not wait for the workers of a run
            max_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
            # Without it Ray hides the GPUs of a machine from a task that requests none.
            runtime_env={"env_vars": {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}},
        ).remote(PACKAGES, dict(driver), pickle.dumps(each)): _name(node)
        for node, each in zip(nodes, checks, strict=True)
    }


def _answers(asked: Mapping[Any, str], driver: Versions) -> Iterator[tuple[str, str]]:
    """Waits for the machines. Yields pairs of a machine and a problem."""
    done, late = ray.wait(list(asked), num_returns=len(asked), timeout=MACHINE_SECONDS) if asked else ([], [])
    for reference in late:
        yield asked[reference], f"no answer within {MACHINE_SECONDS:.0f} s: is it overloaded, or cut off from the head?"
    for reference in done:
        machine = asked[reference]
        try:
            found, problems = ray.get(reference)
        except RayError as error:
            cause = error.cause if isinstance(error, RayTaskError) else error
            yield (
                machine,
                f"the check failed: {type(cause).__name__}: {exception_line(str(cause))}: see Ray's log there",
            )
            continue
        if problem := version_problem(found, driver):
            yield machine, problem
        for problem in problems:
            yield machine, problem


def _name(node: Mapping[str, Any]) -> str:
    """The name that `ray start --node-name` gave the machine, otherwise its host name."""
    name, address = node["NodeName"], node["NodeManagerAddress"]
    return name if name != address else f"{node['NodeManagerHostname']} ({address})"
