"""Computes the number of workers of a cluster, and the CPUs, GPUs and threads of each worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from maskmill.model.errors import DeviceError
from maskmill.pipeline.errors import RunFailedError

CPUS_PER_WORKER = 2

# The resources of a machine, with the names of Ray.
Machine = Mapping[str, float]


@dataclass(frozen=True)
class Placement:
    """The number of workers of a run, and the resources that each one requests from Ray."""

    workers: int
    cpus: int  # 0 if a machine has fewer CPUs than GPUs; its workers then start without reserved CPUs
    gpus: int

    def threads_on(self, machine: Machine) -> int:
        """The number of CPU threads of a worker on a machine, for torch and for decoding.

        The CPUs that the worker requested, limited to the CPUs per GPU of the machine: the machine may have joined the
        cluster after the request and have fewer.
        """
        cpus = min(self.cpus, _cpus_per_gpu(machine)) if self.gpus else self.cpus
        return max(1, cpus)


def place(machines: Sequence[Machine], device: str) -> Placement:
    """One worker per GPU, or one worker per two CPUs if there is no GPU or `device` is "cpu".

    A worker on a GPU requests the CPUs per GPU of its machine. All workers of a run request the same
    number, the smallest over all machines, so Ray can place any worker on any GPU.

    Raises DeviceError if `device` is a GPU and the cluster has none, RunFailedError if the cluster has no CPU.
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
