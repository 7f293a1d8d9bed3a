"""SIGINT and SIGTERM as a wish to stop, which the work at hand looks for."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class StopSignals:
    """Counts SIGINT and SIGTERM inside the block, instead of what they did before.

    Nothing is raised: an exception in the middle of Ray's native code would leave it in disorder.
    """

    def __init__(self) -> None:
        self.count = 0
        self.last = signal.SIGINT
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # no other one gets signals, or may ask for them
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: FrameType | None) -> None:
        self.count += 1
        self.last = signal.Signals(number)
