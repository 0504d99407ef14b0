"""How far long work is: a bar in a terminal, a line every half a minute anywhere else."""

import math
import sys
import time
from collections.abc import Iterable
from typing import Any, ClassVar

from tqdm import tqdm

_LINE_SECONDS = 30.0
_LINE = "{desc}: {percentage:.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


class ProgressBar(tqdm):  # type: ignore[type-arg]  # generic in its stubs alone
    """Progress on standard error: a bar; without a terminal, one line every 30 seconds over all bars.

    Args:
        items: iterated over; None: ``update`` counts.
        title: of the work.
        unit: of the count, such as frame.
        total: how many; None: the length of ``items``.
        initial: how many are done already.
        is_shown: False shows nothing.
    """

    _said: ClassVar[float] = time.monotonic()

    def __init__(
        self,
        items: Iterable[Any] | None = None,
        *,
        title: str,
        unit: str,
        total: int | None = None,
        initial: int = 0,
        is_shown: bool = True,
    ) -> None:
        self._is_bar = sys.stderr.isatty()
        super().__init__(
            items,
            desc=title,
            unit=unit,
            total=total,
            initial=initial,
            disable=not is_shown,
            file=sys.stderr,
            leave=False,
            mininterval=0.1 if self._is_bar else 1.0,
            bar_format=None if self._is_bar else _LINE,
        )

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:  # type: ignore[override]  # of its stubs
        """Draws the bar, or prints the line if it is time; returns whether a bar was drawn."""
        if self._is_bar:
            return bool(super().display(msg, pos))
        if msg is None and time.monotonic() - ProgressBar._said >= _LINE_SECONDS:
            ProgressBar._said = time.monotonic()
            print(self, file=sys.stderr, flush=True)
        return False

    def clear(self, nolock: bool = False) -> None:
        """Clears the bar's line of the terminal."""
        if self._is_bar:
            super().clear(nolock)

    def close(self) -> None:
        """Ends the bar and clears its line of the terminal."""
        if not self._is_bar:
            self.delay = math.inf  # as if never drawn: nothing to clear
        super().close()
