"""Counts a step's operations that launch work on a device, and the moments in which the host would wait for it."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_VALUES_OR_SIZES_FROM_THE_DEVICE = {
    "_local_scalar_dense",
    "bincount",
    "equal",
    "is_nonzero",
    "masked_select",
    "nonzero",
    "unique_consecutive",
    "unique_dim",
    "_unique2",
}
"""Operators that return a value to the host, or whose result's shape depends on values."""
_COPIES = {Tensor.tolist, Tensor.cpu, Tensor.numpy, torch.tensor, torch.as_tensor, torch.from_numpy}
"""Functions that copy from the device to the host, or from ordinary memory of the host to the device."""


class Operations:
    """Counts the operations dispatched within the block as on a GPU, on any device.

    Attributes:
        launching: counts by operator name; without views and allocations, which launch nothing.
        views: how many of those there were, counted separately.
        waits: operators that would make the host wait for a GPU, by name: values, sizes that depend on values, Boolean
            indices, copies from and to ordinary memory of the host.
    """

    def __init__(self) -> None:
        self.launching: Counter[str] = Counter()
        self.views = 0
        self.waits: Counter[str] = Counter()
        self._modes = (_Dispatched(self), _Called(self))

    def __enter__(self) -> "Operations":
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(kind, error, trace)

    @property
    def num_launching(self) -> int:
        """Operations that launch work."""
        return self.launching.total()

    @property
    def num_waits(self) -> int:
        """Moments in which the host would wait."""
        return self.waits.total()


_is_counting = True


@contextlib.contextmanager
def uncounted() -> Iterator[None]:
    """Within the block no operation counts, such as those that only an imitation needs."""
    global _is_counting
    before, _is_counting = _is_counting, False
    try:
        yield
    finally:
        _is_counting = before


class _Dispatched(TorchDispatchMode):
    def __init__(self, counts: Operations) -> None:
        super().__init__()
        self._counts = counts

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.name().partition("::")[2].partition(".")[0]
        if not _is_counting:
            return func(*args, **(kwargs or {}))
        if is_view_or_allocation(func):
            self._counts.views += 1
        else:
            self._counts.launching[name] += 1
        if (
            name in _VALUES_OR_SIZES_FROM_THE_DEVICE
            or _has_boolean_index(name, args)
            or (name == "repeat_interleave" and (kwargs or {}).get("output_size") is None)
        ):
            self._counts.waits[name] += 1
        return func(*args, **(kwargs or {}))


class _Called(TorchFunctionMode):
    """Sees calls that are not dispatched when the host is the device."""

    def __init__(self, counts: Operations) -> None:
        super().__init__()
        self._counts = counts

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _COPIES or (func is Tensor.to and _names_the_host(args[1:], kwargs or {})):
            self._counts.waits[getattr(func, "__name__", str(func))] += 1
        return func(*args, **(kwargs or {}))


def is_view_or_allocation(func: Any) -> bool:
    """Whether an operator launches no work."""
    name = func.name().partition("::")[2].partition(".")[0]
    if name in ("_unsafe_view", "_reshape_alias") or name.startswith(("empty", "new_empty")):
        return True
    aliases = [result.alias_info for result in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


def _has_boolean_index(name: str, args: tuple[Any, ...]) -> bool:
    if name not in ("index", "index_put", "index_put_", "_index_put_impl_"):
        return False
    return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1])


def _names_the_host(arguments: tuple[Any, ...], named: dict[str, Any]) -> bool:
    # Only a string: a device object may be the tensor's own, here the host.
    return "cpu" in (named.get("device"), *(value for value in arguments if isinstance(value, str)))
