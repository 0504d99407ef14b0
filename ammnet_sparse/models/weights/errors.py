"""The error of weights that cannot be used, and how its messages list names."""

from collections.abc import Sequence

_NAMES_SHOWN = 6


class WeightsError(ValueError):
    """Weights that cannot be used; the message names the file, what was expected and what was found."""


def some_names(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(names[:_NAMES_SHOWN])
    return shown if len(names) <= _NAMES_SHOWN else f"{shown} and {len(names) - _NAMES_SHOWN} more"
