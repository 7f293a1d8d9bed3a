"""A local Ray cluster on this machine, with the current process as its driver."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from maskmill.pipeline import cluster


@contextmanager
def this_machine(num_cpus: int, metrics_export_port: int | None = None, **system_config: float) -> Iterator[None]:
    """Ray on this machine alone, for runs in this process."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    ray.init(
        address="local",
        num_cpus=num_cpus,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        object_store_memory=cluster.OBJECT_STORE_BYTES,
        _metrics_export_port=metrics_export_port,
        _system_config=system_config,
    )
    try:
        yield
    finally:
        ray.shutdown()
