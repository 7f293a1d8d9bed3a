"""Cache folders of compiled code: the defaults of numba and Triton, or a private folder if those are not writable.

In a container the package is often read-only and the user has no home folder.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numba
from numba.core import config

_numba_config: Any = config


def njit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """`numba.njit` with a cache on disk and without the GIL. Raises OSError if no temporary folder is writable.

    numba first tries NUMBA_CACHE_DIR, the folder of the source file and the user's cache folder.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(nogil=True, cache=True, **options)(function)
        except RuntimeError:  # none of these folders is writable
            _numba_config.CACHE_DIR = str(private_folder() / "numba")
            return numba.njit(nogil=True, cache=True, **options)(function)

    return decorate


def choose_triton_cache() -> None:
    """Sets TRITON_CACHE_DIR if Triton cannot write its default, a folder in the user's home.

    Call it before the first kernel. Raises OSError if no temporary folder is writable.
    """
    if not ({"TRITON_CACHE_DIR", "TRITON_HOME"} & os.environ.keys() or home_is_writable()):
        os.environ["TRITON_CACHE_DIR"] = str(private_folder() / "triton")


def home_is_writable() -> bool:
    """Whether files can be created in the user's home folder. False if there is none."""
    home = os.path.expanduser("~")  # unchanged if neither HOME nor the password database has one
    return os.path.isabs(home) and os.access(home, os.W_OK | os.X_OK)


def private_folder() -> Path:
    """A folder in the temporary folder that only this user can write, because cached code is executed.

    All processes of the user share it. Raises OSError if it cannot be created or is not private.
    """
    folder = Path(tempfile.gettempdir(), f"maskmill-{os.getuid()}")
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise PermissionError(f"{folder}: not a folder that only this user can write: remove it, or set TMPDIR")
    return folder
