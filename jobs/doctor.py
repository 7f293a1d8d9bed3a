"""`maskmill doctor`: checks that the machines of a cluster can do a run."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Annotated, Any

import typer

from maskmill.jobs.generate import generate
from maskmill.jobs.log import log
from maskmill.jobs.options import given_arguments, with_options_of
from maskmill.jobs.run import check_device
from maskmill.jobs.submit import Wheel, connect, doctor_command, follow, require_shared


@with_options_of(generate)
def doctor(
    context: typer.Context,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="A cluster: http://HEAD:8265 from anywhere; auto or host:port on one of its machines. Default: "
            "RAY_API_SERVER_ADDRESS, otherwise this machine.",
            show_default=False,
        ),
    ] = None,
    wheel: Wheel = None,
    client: Annotated[str | None, typer.Option(hidden=True, help="Versions of the submitting machine, JSON.")] = None,
    **options: Any,
) -> None:
    """Check, before a run, that every machine of a cluster can do it. Takes the options of `maskmill generate`.

    Each machine that would get a worker reads an image of SOURCE, proves that OUT honours create-if-absent, compares
    the sha256 of the checkpoint, uses its GPU, and compares its versions of Python, Ray, torch and maskmill with those
    of the driver. The cluster must have the resources for at least one worker.

    Each failure is one line with the remedy, and the exit code is 1. `maskmill submit` runs these checks first.

    Examples:

      maskmill doctor s3://bucket/photos s3://bucket/out --address http://HEAD:8265

      maskmill doctor /data/photos /data/out --address auto --model vit_h --checkpoint /models/sam_vit_h_4b8939.pth
    """
    log.use(options["log_format"], run=options["out"])
    check_device(options["device"])
    named = os.environ.get("RAY_API_SERVER_ADDRESS") if address is None else address
    if named and (address is None or "://" in address):
        require_shared(options)
        jobs = connect(named)
        entrypoint = f"exec {doctor_command(given_arguments(context, generate, without=('address',)))}"
        job, _ = jobs.submit(f"maskmill-doctor-{uuid.uuid4().hex[:10]}", entrypoint, options["out"], wheel=wheel)
        follow(jobs, job, "the cluster is not ready for this run")
        return
    _diagnose(options, address, json.loads(client) if client else None)


def _diagnose(options: dict[str, Any], address: str | None, client: dict[str, str] | None) -> None:
    """Runs the checks with this process as the driver, and prints the result."""
    # Imported here because torch and ray take seconds to import and `--help` does not need them.
    from maskmill.pipeline.doctor import diagnose
    from maskmill.pipeline.placement import parse_labels
    from maskmill.pipeline.preflight import RunInputs
    from maskmill.pipeline.sources import NameFilter

    checkpoint: Path | None = options["checkpoint"]
    inputs = RunInputs(
        source=options["moved_to"] or options["source"],
        names=NameFilter(tuple(options["include"] or ()), tuple(options["exclude"] or ())),
        out=options["out"],
        model=options["model"],
        checkpoint=checkpoint and checkpoint.absolute(),
        device=options["device"],
        gpus_per_worker=options["gpus_per_worker"],
        labels=[parse_labels(text) for text in options["labels"] or ()],
        workers=options["workers"],
    )
    diagnosis = diagnose(inputs, address, client)
    for role, versions in (("client", client or {}), ("driver", diagnosis.versions)):
        if versions:
            typer.echo(f"{role}    {', '.join(f'{name} {version}' for name, version in versions.items())}")
    workers = f"{diagnosis.workers} worker{'' if diagnosis.workers == 1 else 's'}"
    machines = f"{diagnosis.machines} machine{'' if diagnosis.machines == 1 else 's'}"
    typer.echo(f"cluster   {machines}, {workers}, {diagnosis.gpus:g} GPUs")
    for problem in diagnosis.problems:
        log.write("error", problem)
    if diagnosis.problems:
        raise typer.Exit(1)
    typer.echo("checks    ok: source, output, checkpoint, versions, resources")
