"""Processes stopped with SIGKILL: at each step they take below a folder, in the midst of a write, at any instant."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from maskmill.pipeline.storage import PROBE_PREFIX, Storage

Work = Callable[[], object]  # picklable
Objects = dict[str, bytes]  # an output: bytes by key

# From a server that has imported what takes seconds to import; the imports of `__main__` would be repeated otherwise.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["__main__", "maskmill.pipeline.storage.s3", "tests.runs"])

# What Python tells its audit hooks before it does it, and how many of the arguments are paths.
_STEPS = {
    "open": 1,
    "os.listdir": 1,
    "os.scandir": 1,
    "os.mkdir": 1,
    "os.rmdir": 1,
    "os.remove": 1,
    "os.truncate": 1,
    "os.utime": 1,
    "os.link": 2,
    "os.symlink": 2,
    "os.rename": 2,
}


@dataclass(frozen=True)
class Point:
    """Where a process was killed."""

    number: int  # of its steps, from 1
    step: str  # what it was about to do, and with which files
    torn: int | None = None  # it did it, and was killed by its write of the byte after this one

    def __str__(self) -> str:
        return f"step {self.number}, {self.step}" + ("" if self.torn is None else f", after {self.torn} bytes")


def kill_points(
    work: Callable[[Path], object], places: Iterable[Path], torn: int | None = None
) -> Iterator[tuple[Point, Path]]:
    """Does the work in one place after the other, each time in a new process that gets one step further than the last.

    Yields where each was killed; ends when one gets through. Steps are what a process does with files in its place.
    With `torn`, they are only the openings of files to write, and the kernel kills it when so many bytes are written.
    """
    for number, place in enumerate(places, 1):
        if (point := killed_at(number, partial(work, place), place, torn)) is None:
            return
        yield point, place


def killed_at(number: int, work: Work, root: Path, torn: int | None = None) -> Point | None:
    """Does the work in a process that is killed before its number-th step below `root`; None where it got through."""
    receiver, sender = _CONTEXT.Pipe(duplex=False)
    process = start(partial(_do_watched, work, str(root), number, torn, sender))
    sender.close()
    killed = was_killed(process)
    try:
        step = receiver.recv()
    except EOFError:
        step = None
    assert killed == (step is not None), "killed by somebody else, or not at all"
    return Point(number, step, torn) if step else None


def killed_after(seconds: float, work: Work) -> bool:
    """Does the work in a process that is killed so many seconds after it began; False where it got through before."""
    process = start(work)
    process.join(seconds)
    process.kill()
    return was_killed(process)


def start(work: Work) -> BaseProcess:
    """A process that does the work."""
    process = _CONTEXT.Process(target=work)
    process.start()
    return process


def was_killed(process: BaseProcess) -> bool:
    """Waits for the end of a process, and tells whether it was killed. AssertionError where it failed by itself."""
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL, -signal.SIGXFSZ), f"exit code {process.exitcode}"
    return process.exitcode != 0


def objects(storage: Storage) -> Objects:
    """Everything that a reader sees in an output. Without the probes of starts that were killed: see Storage.sweep."""
    keys = [item.key for item in storage.list()]
    return {key: storage.read(key) for key in keys if not key.startswith(PROBE_PREFIX)}


def differences(found: Objects, expected: Objects) -> list[str]:
    """How the `objects` of two outputs differ: a line for each that is missing, too many, or has other bytes."""
    missing = [f"{key} is missing" for key in expected if key not in found]
    return missing + strangers(found, expected)


def strangers(found: Objects, *expected: Objects) -> list[str]:
    """The `objects` that are in none of the `expected` outputs: what may not be seen at any instant of a run."""
    return [
        f"{key}: {len(data)} bytes that no undisturbed run has"
        for key, data in found.items()
        if all(data != output.get(key) for output in expected)
    ]


def _do_watched(work: Work, root: str, number: int, torn: int | None, sender: Connection) -> None:
    steps = itertools.count(1)
    if torn is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        paths = _paths(event, arguments)
        if not any(path == root or path.startswith(root + "/") for path in paths):
            return
        if torn is not None and not (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        if next(steps) == number:
            names = ", ".join(os.path.relpath(path, root) for path in paths)
            sender.send(f"{event}({names})")
            if torn is None:
                os.kill(os.getpid(), signal.SIGKILL)
            else:
                resource.setrlimit(resource.RLIMIT_FSIZE, (torn, torn))

    sys.addaudithook(watch)  # for ever: there is no taking it away
    work()


def _paths(event: str, arguments: tuple[Any, ...]) -> list[str]:
    paths = arguments[: _STEPS.get(event, 0)]
    return [os.fsdecode(path) for path in paths if isinstance(path, str | bytes | os.PathLike)]
