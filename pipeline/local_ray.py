"""Environment variables and temporary folder of the local Ray cluster of a run. Does not import ray."""

from __future__ import annotations

import os
import secrets
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from maskmill.compiled import home_is_writable
from maskmill.pipeline.errors import RunFailedError

# By default Ray runs its workers at niceness 15, where they get almost no CPU time while another process is busy. With
# 0 they keep the niceness of the process that starts Ray. Set it on every machine of a cluster.
WORKER_NICENESS = ("RAY_worker_niceness", "0")
# The longest socket path that Ray creates, relative to its temporary folder.
SOCKET = "/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
MAX_SOCKET_BYTES = 103 if sys.platform == "darwin" else 107
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")


@contextmanager
def local_environment() -> Iterator[str]:
    """Sets the variables that Ray reads, unless the user has set them. Yields the temporary folder for Ray.

    This is the default folder of Ray if it is writable and its socket paths are short enough, otherwise a folder that
    is removed at the end. Raises RunFailedError if no such folder exists.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault(*WORKER_NICENESS)
    if not ({"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys() or home_is_writable()):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # otherwise Ray writes a token file to the home folder
    wanted = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    folder = os.path.join(wanted, "ray")
    if len(os.fsencode(folder + SOCKET)) <= MAX_SOCKET_BYTES and _is_usable(Path(folder)):
        yield folder
        return
    short = next((short for short in SHORT_FOLDERS if _is_usable(Path(short, "ray"))), None)
    if short is None:
        raise RunFailedError(
            f"{wanted}: Ray needs a temporary folder that can be written and has a path of at most "
            f"{MAX_SOCKET_BYTES - len(SOCKET) - len('/ray')} bytes: set RAY_TMPDIR"
        )
    with tempfile.TemporaryDirectory(prefix="maskmill-ray-", dir=short, ignore_cleanup_errors=True) as folder:
        yield folder


def _is_usable(folder: Path) -> bool:
    """Whether the folder is writable or can be created."""
    existing = next(path for path in (folder, *folder.parents) if os.path.exists(path))
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
