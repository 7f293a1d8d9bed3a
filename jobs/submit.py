"""`maskmill submit`: starts `maskmill generate` as a job of a Ray cluster, or attaches to the job that runs already."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maskmill.jobs.extras import require_extra
from maskmill.jobs.generate import GENERATOR_OPTIONS, decoding_config, generate, run_config
from maskmill.jobs.log import log
from maskmill.jobs.options import given_arguments, with_options_of
from maskmill.jobs.run import check_device

if TYPE_CHECKING:
    from maskmill.pipeline.ray_jobs import RayJob, RayJobs

INTERRUPTED = 130
TERMINATED = 143
RESUME = "finished work is kept: submit it again to resume"

ClusterAddress = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="URL",
        help="Dashboard of the cluster, http://HEAD:8265. Default: RAY_API_SERVER_ADDRESS or RAY_ADDRESS. Ray's token "
        "is taken from RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token.",
        show_default=False,
    ),
]
Wheel = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Send this wheel of maskmill to the cluster, if its image has none or another version. The packages that "
        "maskmill needs must be there.",
        show_default=False,
    ),
]


@with_options_of(generate)
def submit(
    context: typer.Context,
    address: ClusterAddress = None,
    wheel: Wheel = None,
    driver_label: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Run the driver on a machine with this label of Ray instead of the head. Repeatable.",
            show_default=False,
        ),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Return at once instead of following the log.")] = False,
    **options: Any,
) -> None:
    """Run `maskmill generate` with these options as a job of a Ray cluster, and follow its log.

    The job first checks the cluster as `maskmill doctor` does. SOURCE, OUT and the checkpoint are addresses as the
    machines of the cluster see them; nothing is uploaded.

    The same command attaches to the job while it runs. If the job has ended or its driver has died, the command starts
    it again, and the run resumes.

    Ctrl-C stops following; the job goes on. `maskmill jobs stop` stops it. The exit code is that of the job.

    Examples:

      maskmill submit s3://bucket/photos s3://bucket/out --address http://HEAD:8265

      maskmill submit s3://bucket/photos s3://bucket/out --model vit_h --checkpoint /models/sam_vit_h_4b8939.pth
    """
    from maskmill.pipeline.ray_jobs import job_name

    log.use(options["log_format"], run=options["out"])
    name = job_name(options["out"], _identity(options))
    labels = _labels(driver_label or ())
    jobs = connect(address)
    arguments = given_arguments(context, generate, without=("address",))
    entrypoint = f"{doctor_command(arguments)} && exec {_maskmill('generate', arguments)}"
    job, is_new = jobs.submit(name, entrypoint, options["out"], wheel=wheel, driver_labels=labels)
    log.write("info", f"{'submitted' if is_new else 'attached to the running job'} {job.job_id}")
    if detach:
        typer.echo(job.job_id)
        return
    follow(jobs, job)


def connect(address: str | None) -> RayJobs:
    """The jobs of a cluster. Raises MaskmillError if the extra is not installed, or what RayJobs raises."""
    from maskmill.pipeline.ray_jobs import RayJobs

    require_extra("submit")
    return RayJobs(address)


def doctor_command(arguments: Sequence[str]) -> str:
    """`maskmill doctor` with the arguments of generate, for the shell of a driver."""
    from maskmill.pipeline.preflight import versions

    return _maskmill("doctor", ["--client", json.dumps(versions()), *arguments])


def follow(jobs: RayJobs, job: RayJob, remedy: str = RESUME) -> None:
    """Prints the log of a job until it ends. Raises typer.Exit with the exit code of the job if that is not 0."""

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    try:
        job = jobs.follow(job.job_id, write, lambda line: log.write("warning", line))
    except KeyboardInterrupt:
        log.write("info", f"detached, the job goes on: maskmill jobs logs --follow {job.job_id}")
        raise typer.Exit(INTERRUPTED) from None
    if job.status == "SUCCEEDED":
        return
    code, what = 1, f"failed: {job.message}"
    if job.status == "STOPPED":
        code, what = TERMINATED, "was stopped"
    elif job.exit_code is not None and job.exit_code < 0:
        code, what = 128 - job.exit_code, f"failed: signal {-job.exit_code} killed its driver"
    elif job.exit_code is not None:
        code, what = job.exit_code, f"failed with exit code {job.exit_code}"
    log.write("info" if job.status == "STOPPED" else "error", f"{job.job_id} {what}: {remedy}")
    raise typer.Exit(code)


def require_shared(options: dict[str, Any]) -> None:
    """Raises ConfigError for relative paths: the machines of a cluster have other working directories."""
    from maskmill.pipeline.errors import ConfigError

    for option, name in (
        ("source", "SOURCE"),
        ("out", "OUT"),
        ("checkpoint", "--checkpoint"),
        ("moved_to", "--source"),
    ):
        address = options[option]
        if address is not None and "://" not in str(address) and not os.path.isabs(address):
            raise ConfigError(
                f"{name} {address} is a path relative to this folder, which the cluster does not know: give an s3:// "
                "address or an absolute path on its machines"
            )


def _maskmill(command: str, arguments: Sequence[str]) -> str:
    # Not the script `maskmill`, which a machine that gets maskmill as a wheel does not have.
    return shlex.join(["python", "-m", "maskmill", command, "--address", "auto", *arguments])


def _identity(options: dict[str, Any]) -> str:
    """The settings that decide the masks, as far as they are known without the cluster. Raises ConfigError."""
    from maskmill.pipeline.ledger import Identity
    from maskmill.pipeline.placement import parse_labels
    from maskmill.pipeline.sources import NameFilter, source_uri

    check_device(options["device"])
    for text in options["labels"] or ():
        parse_labels(text)
    require_shared(options)
    overrides = {name: options[name] for name in GENERATOR_OPTIONS if options[name] is not None}
    config = run_config(options["model"], options["preset"], overrides, options["precision"])
    decoding = decoding_config(options["bands"], options["value_range"], options["max_image_pixels"])
    names = NameFilter(tuple(options["include"] or ()), tuple(options["exclude"] or ()))
    # The path of the weights in place of their sha256: the file is on the cluster.
    weights = str(options["checkpoint"] or "")
    return Identity(source_uri(options["source"]), weights, replace(config, decoding=decoding), names).sha256


def _labels(pairs: Sequence[str]) -> dict[str, str]:
    from maskmill.pipeline.errors import ConfigError

    for pair in pairs:
        if "=" not in pair:
            raise ConfigError(f"--driver-label {pair}: give KEY=VALUE")
    return dict(pair.split("=", 1) for pair in pairs)
