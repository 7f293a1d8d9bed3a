"""`maskmill jobs`: lists the jobs of maskmill on a Ray cluster, shows their logs, and stops them."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Annotated

import typer

from maskmill.jobs.log import log
from maskmill.jobs.submit import ClusterAddress, connect, follow

jobs = typer.Typer(
    help="List the jobs that `maskmill submit` started, show their logs, and stop them.", no_args_is_help=True
)

JobId = Annotated[str, typer.Argument(metavar="JOB", help="A job of `maskmill jobs list`.", show_default=False)]


@jobs.command("list")
def list_jobs(address: ClusterAddress = None) -> None:
    """List the jobs that the cluster remembers, running or ended, oldest first.

    Examples:

      maskmill jobs list --address http://HEAD:8265
    """
    from maskmill.jobs.console import aligned

    rows = [("job", "status", "began", "took", "OUT")]
    for job in connect(address).list_all():
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.began))
        took = str(timedelta(seconds=round((job.ended or time.time()) - job.began)))
        rows.append((job.job_id, job.status.lower(), began, took, job.out))
    typer.echo("\n".join(aligned(*rows)))


@jobs.command("logs")
def show_logs(
    job: JobId,
    follow_log: Annotated[
        bool, typer.Option("--follow", help="Go on until the job ends. The exit code is then that of the job.")
    ] = False,
    address: ClusterAddress = None,
) -> None:
    """Print what the driver of a job has written.

    Ctrl-C stops following; the job goes on.

    Examples:

      maskmill jobs logs maskmill-out-3f2a9c01d4 --follow
    """
    cluster = connect(address)
    if follow_log:
        follow(cluster, cluster.find(job))
    else:
        typer.echo(cluster.logs(job), nl=False)


@jobs.command("stop")
def stop_job(job: JobId, address: ClusterAddress = None) -> None:
    """Stop a job and wait until it has ended. Its shards in progress have 25 seconds to finish.

    Finished work is kept: submit it again to resume.

    Examples:

      maskmill jobs stop maskmill-out-3f2a9c01d4
    """
    ended = connect(address).stop(job)
    log.write("info", f"{ended.job_id} has ended: {ended.status.lower()}")
