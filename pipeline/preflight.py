"""What a run needs of its machines: checks of one machine, of versions and of resources. Without Ray."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any

from maskmill.model.checkpoint import embedded_checkpoint, file_sha256
from maskmill.model.errors import CheckpointError, DeviceError, MaskmillError
from maskmill.pipeline.errors import RunFailedError, SourceError, StorageError, one_line_cause
from maskmill.pipeline.ledger import RUN_KEY, read_run
from maskmill.pipeline.placement import LabelSelector, Machine, Placement, has_labels, place
from maskmill.pipeline.records import Failure, Shard
from maskmill.pipeline.sources import NameFilter, Source, open_source
from maskmill.pipeline.storage import Storage, open_storage, prove_create_if_absent

PACKAGES = ("maskmill", "ray", "torch")  # their versions must agree
MAX_CHARACTERS = 500  # of the cause in a problem
IMAGES_TRIED = 8  # a damaged image is a failed row of a run, so the check tries others

SOURCE_REMEDY = "every machine must be able to read SOURCE: s3:// with credentials, or a shared folder"
OUT_REMEDY = "every machine must be able to write OUT: s3:// with credentials, or a shared folder"
CHECKPOINT_REMEDY = "put the checkpoint of the run at this path on every machine"
CUDA_REMEDY = "compare with nvidia-smi, and install a torch that fits the driver of the GPU"

Versions = Mapping[str, str]  # of python and of packages


@dataclass(frozen=True)
class RunInputs:
    """What the user gives a run: addresses and files, not opened yet, and the machines that it wants."""

    source: str
    names: NameFilter
    out: str
    model: str
    checkpoint: Path | None  # None: the embedded weights
    device: str = "auto"
    gpus_per_worker: float = 1
    labels: Sequence[LabelSelector] = ()
    workers: int | None = None


@dataclass(frozen=True)
class MachineCheck:
    """What a run needs on each machine. Picklable: the driver opens source and output and sends them, as a run does.

    None: the driver could not open it, and a machine does not check it.
    """

    source: Source | None
    shard: Shard | None  # the first of the source
    output: Storage | None
    checkpoint: Path | None
    weights_sha256: str | None
    marker: str = ""  # key of an object that the driver has written to the output; "" if it could not
    gpus: int = 0  # of the machine, as Ray counts them, if the run uses GPUs

    def problems(self) -> Iterator[str]:
        """Checks the machine of this process. Yields one line per problem: what is wrong and how to fix it."""
        yield from _failures(
            (self._read_image, SOURCE_REMEDY),
            (self._check_output, OUT_REMEDY),
            (self._check_weights, CHECKPOINT_REMEDY),
            (self._use_cuda, CUDA_REMEDY),
        )

    def _read_image(self) -> None:
        """Reads the images of the shard until one can be read."""
        if self.source is None or self.shard is None:
            return
        failure = Failure("fetch", "there are none")
        for record in islice(self.source.read(self.shard), IMAGES_TRIED):
            if not isinstance(record.data, Failure):
                return
            failure = record.data
        raise SourceError(f"{self.source.uri}: none of its first images can be read ({failure.reason})")

    def _check_output(self) -> None:
        if self.output is None:
            return
        if self.marker and not self.output.exists(self.marker):
            raise StorageError(f"{self.output.uri}: not the folder that the driver writes to, but another of this name")
        prove_create_if_absent(self.output)

    def _check_weights(self) -> None:
        if self.checkpoint is None:
            return
        if not self.checkpoint.exists():
            raise CheckpointError(f"{self.checkpoint}: no such checkpoint")
        if self.weights_sha256 and (sha256 := file_sha256(self.checkpoint)) != self.weights_sha256:
            raise CheckpointError(f"{self.checkpoint}: sha256 is {sha256}, but the run has {self.weights_sha256}")

    def _use_cuda(self) -> None:
        import torch

        try:
            for gpu in range(self.gpus):
                torch.ones(1, device=f"cuda:{gpu}").sum().item()
        except (RuntimeError, AssertionError) as error:  # AssertionError: torch is built without CUDA
            raise DeviceError(
                f"torch {torch.__version__} cannot use the GPUs that Ray counts ({one_line_cause(error)})"
            ) from error


def open_inputs(inputs: RunInputs) -> tuple[MachineCheck, list[str]]:
    """Opens the inputs of a run as its driver does. Returns the check for every machine, and the driver's problems.

    Creates the folder of the output if it does not exist. The sha256 of the weights is that of the run in the output if
    there is one, otherwise that of the driver's file.
    """
    opened: dict[str, Any] = dict.fromkeys(("source", "shard", "output", "checkpoint", "weights_sha256"))

    def open_images() -> None:
        source = open_source(inputs.source, inputs.names)
        opened["shard"] = next(source.plan(IMAGES_TRIED), None)
        if opened["shard"] is None:
            raise SourceError(f"{source.uri}: no images in it{inputs.names.applied}")
        opened["source"] = source

    def open_output() -> None:
        opened["output"] = open_storage(inputs.out, make=True)

    def find_weights() -> None:
        opened["checkpoint"] = checkpoint = inputs.checkpoint or embedded_checkpoint(inputs.model)
        output: Storage | None = opened["output"]
        if output and output.exists(RUN_KEY):
            opened["weights_sha256"] = read_run(output).get("weights_sha256")
        elif checkpoint.exists():
            opened["weights_sha256"] = file_sha256(checkpoint)

    problems = list(
        _failures((open_images, SOURCE_REMEDY), (open_output, OUT_REMEDY), (find_weights, CHECKPOINT_REMEDY))
    )
    return MachineCheck(**opened), problems


def _failures(*checks: tuple[Callable[[], None], str]) -> Iterator[str]:
    """Calls each function. Yields the errors, each with its remedy, in one line."""
    for check, remedy in checks:
        try:
            check()
        except (MaskmillError, OSError) as error:
            yield f"{one_line_cause(error, MAX_CHARACTERS)}: {remedy}"


def versions() -> dict[str, str]:
    """The versions of Python and of PACKAGES in this process."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}}


def version_problem(versions: Versions, driver: Versions) -> str | None:
    """How the versions on a machine differ from those of the driver."""
    differences = [
        f"{name} {versions.get(name) or 'is missing'} here and {wanted} at the driver"
        for name, wanted in driver.items()
        if versions.get(name) != wanted
    ]
    return f"{', '.join(differences)}: use one image, or the same packages, on all machines" if differences else None


def client_problem(client: Versions, driver: Versions) -> str | None:
    """How the maskmill of the client differs. Its other packages may differ: it only sends the command."""
    if client.get("maskmill") == driver["maskmill"]:
        return None
    return (
        f"the client has maskmill {client.get('maskmill')} and the cluster {driver['maskmill']}: install the same "
        "version, or send yours with --wheel"
    )


def find_placement(
    machines: Sequence[Machine], inputs: RunInputs, node_types: Mapping[str, Mapping[str, Any]]
) -> tuple[Placement | None, str | None]:
    """The placement of the workers, or why no machine can ever run one.

    `machines` are those that match the labels. `node_types` are those of the autoscaler, with their "resources" and
    "labels"; empty if they are not known. With a given number of workers, the autoscaler may add machines.
    """
    resource = "GPU" if inputs.device == "cuda" else "CPU"
    fitting = [
        name
        for name, kind in sorted(node_types.items())
        if (kind.get("resources") or {}).get(resource)
        if not inputs.labels or any(has_labels(kind.get("labels") or {}, labels) for labels in inputs.labels)
    ]
    try:
        if inputs.labels and not machines and not inputs.workers:
            raise RunFailedError("no machine of this cluster has the labels of --labels")
        placement = place(machines, inputs.device, inputs.gpus_per_worker, inputs.workers)
    except (DeviceError, RunFailedError) as error:
        if fitting and not inputs.workers:
            return None, (
                f"{error}. The autoscaler can add machines of the type {', '.join(fitting)}: ask for them with "
                "--workers"
            )
        return None, str(error)
    if node_types and not fitting and not any(machine.get(resource) for machine in machines):
        return None, (
            f"no machine has a {resource} and the labels of this run, and no type of the autoscaler "
            f"({', '.join(sorted(node_types))}): change --device or --labels, or add such a type"
        )
    return placement, None
