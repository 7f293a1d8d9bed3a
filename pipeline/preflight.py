"""What a run needs of its machines: checks of one machine, of versions and of resources. Without Ray."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any

from maskmill.model.checkpoint import embedded_checkpoint, file_sha256
from maskmill.model.errors import CheckpointError, DeviceError, MaskmillError
from maskmill.pipeline.errors import RunFailedError, SourceError, StorageError, one_line_cause
from maskmill.pipeline.ledger import RUN_KEY, read_run
from maskmill.pipeline.placement import Machine, Placement, place
from maskmill.pipeline.records import Failure
from maskmill.pipeline.sources import NameFilter, open_source
from maskmill.pipeline.storage import open_storage, prove_create_if_absent

PACKAGES = ("maskmill", "ray", "torch")  # their versions must agree
MAX_CHARACTERS = 500  # of the cause in a problem
IMAGES_TRIED = 8  # a damaged image is a failed row of a run, so the check tries others

Versions = Mapping[str, str]  # of python and of packages


@dataclass(frozen=True)
class MachineCheck:
    """What a run needs on each machine. The driver checks itself and sends it to every machine."""

    source: str
    names: NameFilter
    out: str
    model: str
    checkpoint: Path | None  # None: the embedded weights
    marker: str = ""  # key of an object that the driver has written to OUT
    weights_sha256: str = ""
    cuda: bool = False

    def problems(self) -> Iterator[str]:
        """Checks the machine of this process. Yields one line per problem: what is wrong and how to fix it."""
        checks = {
            self._read_image: "every machine must be able to read SOURCE: s3:// with credentials, or a shared folder",
            self._check_output: "every machine must be able to write OUT: s3:// with credentials, or a shared folder",
            self._check_weights: "put the checkpoint of the run at this path on every machine",
            self._use_cuda: "compare with nvidia-smi, and install a torch that fits the driver of the GPU",
        }
        for check, remedy in checks.items():
            try:
                check()
            except (MaskmillError, OSError) as error:
                yield f"{one_line_cause(error, MAX_CHARACTERS)}: {remedy}"

    def _read_image(self) -> None:
        """Reads the first images of SOURCE until one can be read."""
        source = open_source(self.source, self.names)
        if (shard := next(source.plan(IMAGES_TRIED), None)) is None:
            raise SourceError(f"{self.source}: no images in it{self.names.applied}")
        failure = Failure("fetch", "no images in its first shard")
        for record in islice(source.read(shard), IMAGES_TRIED):
            if not isinstance(record.data, Failure):
                return
            failure = record.data
        raise SourceError(f"{self.source}: its images cannot be read: {failure.reason}")

    def _check_output(self) -> None:
        storage = open_storage(self.out)
        if self.marker and not storage.exists(self.marker):
            raise StorageError(f"{self.out}: not the folder that the driver has written to, but another with this name")
        prove_create_if_absent(storage)

    def _check_weights(self) -> None:
        checkpoint = self.checkpoint or embedded_checkpoint(self.model)
        if not checkpoint.exists():
            raise CheckpointError(f"{checkpoint}: no such checkpoint")
        if self.weights_sha256 and (sha256 := file_sha256(checkpoint)) != self.weights_sha256:
            raise CheckpointError(f"{checkpoint}: sha256 is {sha256}, but the run has {self.weights_sha256}")

    def _use_cuda(self) -> None:
        if not self.cuda:
            return
        import torch

        try:
            torch.ones(1, device="cuda").sum().item()
        except (RuntimeError, AssertionError) as error:  # AssertionError: torch is built without CUDA
            raise DeviceError(f"torch {torch.__version__} cannot use the GPU ({one_line_cause(error)})") from error


def for_workers(check: MachineCheck, marker: str, cuda: bool) -> MachineCheck:
    """The check that every machine of the run must pass. `marker` is an object that the driver has written to OUT.

    The sha256 of the weights is that of the run in OUT if there is one, otherwise that of the driver's file, and "" if
    neither can be read.
    """
    try:
        storage = open_storage(check.out)
        there = storage.exists(RUN_KEY)
        weights_sha256 = (
            str(read_run(storage).get("weights_sha256", ""))
            if there
            else file_sha256(check.checkpoint or embedded_checkpoint(check.model))
        )
    except (MaskmillError, OSError):  # also found by `problems`
        weights_sha256 = ""
    return replace(check, marker=marker, weights_sha256=weights_sha256, cuda=cuda)


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
    machines: Sequence[Machine], device: str, node_types: Mapping[str, Mapping[str, Any]]
) -> tuple[Placement | None, str | None]:
    """The placement of the workers, or why no machine can ever run one.

    `node_types` are those of the autoscaler, with their "resources", if they are known.
    """
    try:
        return place(machines, device), None
    except (DeviceError, RunFailedError) as error:
        needed = "CPU" if device == "cpu" or isinstance(error, RunFailedError) else "GPU"
        fitting = sorted(name for name, kind in node_types.items() if (kind.get("resources") or {}).get(needed))
        if fitting:
            return None, (
                f"{error}. The autoscaler could add machines of the type {', '.join(fitting)}, but maskmill does not "
                "ask for them: raise min_workers"
            )
        return None, str(error)
