"""`python -m tests.fuzz --seconds 600`: all targets in turn, each for its share of the time; logs the runs of each.

A failure is shown with the smallest input that hypothesis finds for it. A crash of the process leaves the input that
it read in the file that the log names.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from hypothesis import given, settings

from tests.fuzz.targets import TARGETS, Target

RUNS_AT_ONCE = 2000  # between two looks at the clock


def fuzz(target: Target, seconds: float, runs_at_once: int = RUNS_AT_ONCE, last_input: Path | None = None) -> int:
    """Feeds a target for so many seconds, at least once; returns how many runs there were. Raises what it raises."""
    runs = 0

    @settings(max_examples=runs_at_once, deadline=None, database=None)
    @given(target.inputs)
    def feed(data: bytes) -> None:
        nonlocal runs
        runs += 1
        if last_input:
            last_input.write_bytes(data)
        target.check(data)

    end = time.monotonic() + seconds
    while True:
        feed()
        if time.monotonic() >= end:
            return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="for all targets together")
    parser.add_argument("targets", nargs="*", default=list(TARGETS), help=", ".join(TARGETS))
    arguments = parser.parse_args()
    last_input = Path(tempfile.mkdtemp(prefix="maskmill-fuzz-")) / "last-input"
    sys.stdout.write(f"the input at work is in {last_input}\n")
    for name in arguments.targets:
        started = time.monotonic()
        runs = fuzz(TARGETS[name], arguments.seconds / len(arguments.targets), last_input=last_input)
        sys.stdout.write(f"{name}: {runs} runs in {time.monotonic() - started:.0f} s, nothing found\n")
        sys.stdout.flush()
    shutil.rmtree(last_input.parent)


if __name__ == "__main__":
    main()
