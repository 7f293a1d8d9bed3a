"""Records SIGINT and SIGTERM as requests to stop, which the running loop polls."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class StopSignals:
    """A context manager that counts SIGINT and SIGTERM instead of running the previous handlers.

    The handlers do not raise, because an exception inside native code of Ray would corrupt its state.
    """

    def __init__(self) -> None:
        self.count = 0
        self.last = signal.SIGINT
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if (
            threading.current_thread() is threading.main_thread()
        ):  # Python allows signal handlers in the main thread only
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: FrameType | None) -> None:
        self.count += 1
        self.last = signal.Signals(number)
