"""How many workers the machines of a cluster have room for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from maskmill.model.errors import DeviceError
from maskmill.pipeline.errors import RunFailedError

CPUS_PER_WORKER = 2


@dataclass(frozen=True)
class Placement:
    """How many workers a cluster has room for, and what each one takes."""

    workers: int
    cpus: int
    gpus: int
    threads: int  # for torch and for decoding, inside a worker


def place(nodes: Sequence[Mapping[str, float]], device: str) -> Placement:
    """One worker per GPU, or one per two cores where there is none or `device` is "cpu".

    `nodes` are the resources of each machine under Ray's names. Raises DeviceError where `device` asks for a GPU and
    there is none, RunFailedError where there is no CPU either.
    """
    cpus = [int(node.get("CPU", 0)) for node in nodes if node.get("CPU", 0) >= 1]
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    if device == "auto":
        device = "cuda" if gpus else "cpu"
    if device == "cpu":
        if not cpus:
            raise RunFailedError("no machine of this cluster has a CPU to offer")
        cpus_each = min(CPUS_PER_WORKER, *cpus)
        return Placement(sum(count // cpus_each for count in cpus), cpus_each, 0, cpus_each)
    if gpus == 0:
        raise DeviceError(f"no GPU in this cluster for device {device!r}; choose auto or cpu")
    return Placement(gpus, 1, 1, max(1, sum(cpus) // gpus))
