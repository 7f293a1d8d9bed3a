"""`maskmill retry`: processes the failed images of a run again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from maskmill.jobs.log import LogFormat, LogFormatOption, log
from maskmill.jobs.run import (
    IMAGE_TIMEOUT,
    Address,
    Device,
    GpusPerWorker,
    ImageTimeout,
    Labels,
    MovedTo,
    RunOutput,
    Workers,
    check_device,
    run_job,
)


def retry(
    out: RunOutput,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Weights of the run. Not needed for mini.", show_default=False),
    ] = None,
    device: Device = "auto",
    address: Address = None,
    workers: Workers = None,
    gpus_per_worker: GpusPerWorker = 1,
    labels: Labels = None,
    image_timeout: ImageTimeout = IMAGE_TIMEOUT,
    moved_to: MovedTo = None,
    log_format: LogFormatOption = LogFormat.text,
) -> None:
    """Process the failed and quarantined images of a run again.

    New rows replace the old ones in OUT/images. New masks go to new parts in OUT/masks.

    To process images that the run has not reached yet, run `maskmill generate` again.

    Examples:

      maskmill retry out/

      maskmill retry s3://bucket/out --checkpoint sam_vit_h_4b8939.pth --address auto
    """
    # Imported here because torch and pyarrow take seconds to import and `--help` does not need them.
    from maskmill.jobs.console import plain_console
    from maskmill.model.checkpoint import load_model
    from maskmill.pipeline.engine import GeneratorFactory
    from maskmill.pipeline.errors import RunMismatchError
    from maskmill.pipeline.finished import open_finished_run
    from maskmill.pipeline.job import Job
    from maskmill.pipeline.ledger import reopen_run
    from maskmill.pipeline.placement import parse_labels
    from maskmill.pipeline.sources import open_planned
    from maskmill.pipeline.storage import open_storage

    log.use(log_format, run=out)
    check_device(device)
    selectors = [parse_labels(text) for text in labels or ()]
    identity, ledger = reopen_run(open_storage(out))
    config = identity.config
    weights_sha256 = load_model(config.model, checkpoint).sha256
    if weights_sha256 != identity.weights_sha256:
        raise RunMismatchError(
            f"{out}: made with other weights: sha256 {identity.weights_sha256}, not {weights_sha256}: "
            "give the checkpoint of the run"
        )
    run = open_finished_run(ledger.storage, moved_to)
    shards = run.retries()
    engine = GeneratorFactory(config, checkpoint and checkpoint.absolute(), weights_sha256, device, gpus_per_worker)
    job = Job(open_planned(run.plan.source), ledger, engine, config.decoding)
    run_job(job, shards, device, address, image_timeout, gpus_per_worker, selectors, workers)
    if left := len(run.plan) - len(ledger.committed()):
        console = plain_console()
        console.print(f"not done  {left} of {len(run.plan)} shards: continue with `maskmill generate`")
