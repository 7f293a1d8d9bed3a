"""Computes the number of workers of a cluster, and the CPUs, GPUs and threads of each worker."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from maskmill.model.errors import ConfigError, DeviceError
from maskmill.pipeline.errors import RunFailedError

CPUS_PER_WORKER = 2  # without a GPU

# The resources of a machine, with the names of Ray.
Machine = Mapping[str, float]

# Conditions on the labels of a machine, as in Ray: key -> "value", "in(a,b)", "!value" or "!in(a,b)".
LabelSelector = Mapping[str, str]
_CONDITION = re.compile(r"([\w./-]+)=(!?(?:in\([\w.,\- ]+\)|[\w.-]+))")


@dataclass(frozen=True)
class Placement:
    """The number of workers of a run, and the resources that each one requests from Ray."""

    workers: int
    cpus: int  # 0 if a machine has fewer CPUs than workers; its workers then start without reserved CPUs
    gpus: float  # 0, or from more than 0 to 1

    def threads_on(self, machine: Machine) -> int:
        """The number of CPU threads of a worker on a machine, for torch and for decoding.

        A worker with a GPU has its share of the CPUs of its machine. Other machines of the cluster do not matter.
        """
        cpus = _cpus_per_worker(machine, self.gpus) if self.gpus else self.cpus
        return max(1, cpus)


def place(
    machines: Sequence[Machine], device: str, gpus_per_worker: float = 1, workers: int | None = None
) -> Placement:
    """The workers of a cluster: as many per GPU as fit, or one per two CPUs if there is no GPU or `device` is "cpu".

    All workers of a run request the same number of CPUs, the smallest share of a worker over all machines, so Ray can
    place any worker on any GPU.

    With a given number of `workers`, the machines may have no room for them: Ray's autoscaler then adds some. Without:

    Raises DeviceError if `device` is a GPU and the cluster has none, RunFailedError if the cluster has no CPU.
    """
    with_gpus = [machine for machine in machines if machine.get("GPU", 0) >= 1]
    cpus = [int(machine["CPU"]) for machine in machines if machine.get("CPU", 0) >= 1]
    if device == "auto":
        if workers and not with_gpus and not cpus:
            raise DeviceError("no machine of this cluster has a GPU or a CPU yet: choose --device cuda or --device cpu")
        device = "cuda" if with_gpus else "cpu"
    if device == "cpu":
        if not cpus and not workers:
            raise RunFailedError("no machine of this cluster has a CPU to offer")
        cpus_each = min((CPUS_PER_WORKER, *cpus))
        return Placement(workers or sum(count // cpus_each for count in cpus), cpus_each, 0)
    if not with_gpus and not workers:
        raise DeviceError(f"no GPU in this cluster for device {device!r}; choose auto or cpu")
    fitting = sum(_workers_on(machine, gpus_per_worker) for machine in with_gpus)
    cpus_each = min((_cpus_per_worker(machine, gpus_per_worker) for machine in with_gpus), default=0)
    return Placement(workers or fitting, cpus_each, gpus_per_worker)


def _workers_on(machine: Machine, gpus_per_worker: float) -> int:
    return int(machine["GPU"]) * int(1 / gpus_per_worker)  # Ray does not divide a worker among GPUs


def _cpus_per_worker(machine: Machine, gpus_per_worker: float) -> int:
    return int(machine.get("CPU", 0)) // _workers_on(machine, gpus_per_worker)


def parse_labels(text: str) -> LabelSelector:
    """Reads "key=value,key=in(a,b)"; an empty text is a selector that every machine matches. Raises ConfigError."""
    conditions = re.split(r",(?![^(]*\))", text) if text else []
    matches = [_CONDITION.fullmatch(condition.strip()) for condition in conditions]
    if not all(matches):
        raise ConfigError(
            f"--labels {text!r}: write KEY=VALUE, KEY=!VALUE or KEY=in(A,B), separated by commas, "
            "such as ray.io/accelerator-type=L4"
        )
    return {match[1]: match[2] for match in matches if match}


def has_labels(labels: Mapping[str, str], selector: LabelSelector) -> bool:
    """Whether the labels of a machine fulfil all conditions of a selector, as Ray decides it."""
    for key, condition in selector.items():
        values = condition.removeprefix("!").removeprefix("in(").removesuffix(")").replace(" ", "").split(",")
        if (labels.get(key) in values) == condition.startswith("!"):
            return False
    return True
