"""The error of weights that cannot be used, and how its messages list names."""

from collections.abc import Sequence

from ammnet_sparse.files.errors import FileError

_NAMES_SHOWN, _LONGEST_NAME = 6, 200


class WeightsError(FileError):
    """Weights that cannot be used; the message names the file, what was expected and what was found."""


def some_names(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    shown = [name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}..." for name in names[:_NAMES_SHOWN]]
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(shown) + more
