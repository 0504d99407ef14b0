"""Handles Ctrl-C and termination signals between two steps, when the state of a run can be saved."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


class RunInterrupted(Exception):
    """A run was asked to stop and has saved its state."""


@contextlib.contextmanager
def signals_handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """SIGINT and SIGTERM call ``handler`` within the block.

    Does nothing outside the main thread, where Python has no signal handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


class StopRequest:
    """Records the first SIGINT or SIGTERM within the block; SIGINT after it acts at once, as without the block.

    SIGTERM after it is ignored: torchrun, ``ammnet experiments`` and schedulers send it to a process that may have
    received the terminal's Ctrl-C, or the same SIGTERM, before.
    Does nothing outside the main thread, where Python has no signal handlers.
    """

    def __init__(self) -> None:
        self.is_set = False
        self._process = os.getpid()
        self._handling = contextlib.ExitStack()

    def __enter__(self) -> "StopRequest":
        self._handling.enter_context(signals_handled_by(self._handle))
        return self

    def __exit__(self, *exception: object) -> None:
        self._handling.close()

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
