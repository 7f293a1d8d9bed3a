"""What a Ray cluster that lives for one local run takes from the environment. Imports no ray: `cluster` starts it."""

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

# Ray lowers the priority of its workers by 15, and beside any busy program of normal priority they nearly stop.
# 0 leaves them the priority of the process that starts Ray. Whoever starts a cluster should set it on every machine.
WORKER_NICENESS = ("RAY_worker_niceness", "0")
# The longest path of a socket that Ray creates below its temporary folder.
SOCKET = "/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
MAX_SOCKET_BYTES = 103 if sys.platform == "darwin" else 107
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")


@contextmanager
def local_environment() -> Iterator[str]:
    """Sets the variables that Ray reads, unless the user has; yields the temporary folder for Ray.

    That is Ray's own choice where the paths of sockets below it are short enough and it can be written, else a folder
    that is removed after the block. Raises RunFailedError where there is none.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault(*WORKER_NICENESS)
    if not ({"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys() or home_is_writable()):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # else Ray writes one into the home folder
    wanted = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    folder = os.path.join(wanted, "ray")
    if len(os.fsencode(folder + SOCKET)) <= MAX_SOCKET_BYTES and _can_be_made(Path(folder)):
        yield folder
        return
    short = next((short for short in SHORT_FOLDERS if _can_be_made(Path(short, "ray"))), None)
    if short is None:
        raise RunFailedError(
            f"{wanted}: Ray needs a temporary folder that can be written and has a path of at most "
            f"{MAX_SOCKET_BYTES - len(SOCKET) - len('/ray')} bytes: set RAY_TMPDIR"
        )
    with tempfile.TemporaryDirectory(prefix="maskmill-ray-", dir=short, ignore_cleanup_errors=True) as folder:
        yield folder


def _can_be_made(folder: Path) -> bool:
    """Whether the folder can be written, or created where it does not exist."""
    existing = next(path for path in (folder, *folder.parents) if os.path.exists(path))
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
