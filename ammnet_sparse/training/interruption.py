"""Handles Ctrl-C and termination signals between two steps, when the state of a run can be saved."""

import os
import signal
import threading
from types import FrameType
from typing import Any


class RunInterrupted(Exception):
    """A run was asked to stop and has saved its state."""


class StopRequest:
    """Records the first SIGINT or SIGTERM within the block; SIGINT after it acts at once, as without the block.

    SIGTERM after it is ignored: torchrun, ``ammnet experiments`` and schedulers send it to a process that may have
    received the terminal's Ctrl-C, or the same SIGTERM, before.
    Does nothing outside the main thread, where Python has no signal handlers.
    """

    def __init__(self) -> None:
        self.is_set = False
        self._process = os.getpid()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            # A worker of the data loader inherits the handler. The terminal sends Ctrl-C to all processes,
            # but the frames of the last step are still needed.
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        if self.is_set:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.is_set = True
        # Not print: the signal may have interrupted a print.
        os.write(2, b"\nstopping after this step, or this batch of the validation; Ctrl-C once more to stop at once\n")
