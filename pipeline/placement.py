"""How many workers a cluster has room for, and how many CPUs and threads each one gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from maskmill.model.errors import DeviceError
from maskmill.pipeline.errors import RunFailedError

CPUS_PER_WORKER = 2

# The resources of a machine, under Ray's names.
Machine = Mapping[str, float]


@dataclass(frozen=True)
class Placement:
    """How many workers a cluster has room for, and what each one requests from Ray."""

    workers: int
    cpus: int  # 0 where a machine has fewer CPUs than GPUs: its workers start all the same
    gpus: int

    def threads_on(self, machine: Machine) -> int:
        """CPU threads of a worker on a machine, for torch and for decoding.

        At most the CPUs that the worker requested. At most the CPUs per GPU of the machine, which may have joined the
        cluster after the request and have fewer.
        """
        cpus = min(self.cpus, _cpus_per_gpu(machine)) if self.gpus else self.cpus
        return max(1, cpus)


def place(machines: Sequence[Machine], device: str) -> Placement:
    """One worker per GPU, or one per two CPUs where there is none or `device` is "cpu".

    A worker on a GPU requests the CPUs per GPU of its machine. All workers of a run request the same, so on machines
    that differ it is the smallest of these numbers: Ray can then place any worker on any of the GPUs.

    Raises DeviceError where `device` asks for a GPU and there is none, RunFailedError where there is no CPU either.
    """
    with_gpus = [machine for machine in machines if machine.get("GPU", 0) >= 1]
    if device == "auto":
        device = "cuda" if with_gpus else "cpu"
    if device == "cpu":
        cpus = [int(machine["CPU"]) for machine in machines if machine.get("CPU", 0) >= 1]
        if not cpus:
            raise RunFailedError("no machine of this cluster has a CPU to offer")
        cpus_each = min(CPUS_PER_WORKER, *cpus)
        return Placement(sum(count // cpus_each for count in cpus), cpus_each, 0)
    if not with_gpus:
        raise DeviceError(f"no GPU in this cluster for device {device!r}; choose auto or cpu")
    workers = sum(int(machine["GPU"]) for machine in with_gpus)
    return Placement(workers, min(map(_cpus_per_gpu, with_gpus)), 1)


def _cpus_per_gpu(machine: Machine) -> int:
    return int(machine.get("CPU", 0) // machine["GPU"])
