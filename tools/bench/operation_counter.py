"""Counts a step's operations that launch work on a device, and the moments in which the host would wait for it."""

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

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
_HOST_ONLY = {"_record_function_enter_new", "_record_function_exit", "promote_types", "scalar_tensor"}
"""Operators that a device never sees: profiler marks, types, and numbers that PyTorch wraps on the host."""
_LAUNCHES = {"normalize_sites": 3, "normalize_sites_backward": 3, "cumsum": 2}
"""Launches of operators that take more than one: ours as in csrc/cuda."""
_LISTS = {"_foreach_copy_": 2, "_fused_adamw_": 4}
"""Lists of tensors that an operator on lists reads or writes, where not one."""
_TENSORS_OF_A_LAUNCH = (110, 64, 48, 36)
_BLOCKS_OF_A_LAUNCH, _ELEMENTS_OF_A_BLOCK = 320, 65_536
"""Most tensors (by the number of lists) and blocks of a launch over lists: PyTorch's MultiTensorApply.cuh."""
_PRODUCTS = {"mm", "addmm", "addmm_", "convolution", "convolution_backward"}


class Operations:
    """Counts the operations dispatched within the block as on a GPU, on any device.

    Args:
        skips_products: matrix products and convolutions return zeros without computing, to count large networks.

    Attributes:
        launching: counts by operator name; without views, allocations and what the host does, which launch nothing.
        launches: kernels, copies and fills by operator name that those operations launch on CUDA (``launches_of``).
        views: how many operations launched nothing.
        waits: operators that would make the host wait for a GPU, by name: values, sizes that depend on values, Boolean
            indices, copies from and to ordinary memory of the host.
    """

    def __init__(self, *, skips_products: bool = False) -> None:
        self.skips_products = skips_products
        self.launching: Counter[str] = Counter()
        self.launches: Counter[str] = Counter()
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
    def num_launches(self) -> int:
        """Kernels, copies and fills that they launch."""
        return self.launches.total()

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
            self._counts.launches[name] += launches_of(name, args)
        if (
            name in _VALUES_OR_SIZES_FROM_THE_DEVICE
            or _has_boolean_index(name, args)
            or (name == "repeat_interleave" and (kwargs or {}).get("output_size") is None)
        ):
            self._counts.waits[name] += 1
        if self._counts.skips_products and name in _PRODUCTS:
            return _zeros(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


def launches_of(name: str, args: Sequence[Any]) -> int:
    """Launches of an operator on CUDA.

    Known for our operators, for lists of tensors, and for sorting (a pass for each byte); one for the others.
    """
    if name == "convolution_backward":
        return sum(args[-1])
    if name == "sort":
        return 3 + int(args[0].element_size())
    if name in _LISTS or name.startswith("_foreach"):
        lists = [value for value in args if isinstance(value, list | tuple) and value]
        if name == "_foreach_copy_" and any(len({tensor.dtype for tensor in tensors}) > 1 for tensors in lists):
            return len(lists[0])
        blocks = sum(math.ceil(tensor.numel() / _ELEMENTS_OF_A_BLOCK) for tensor in lists[0])
        most = _TENSORS_OF_A_LAUNCH[_LISTS.get(name, 1) - 1]
        return max(math.ceil(len(lists[0]) / most), math.ceil(blocks / _BLOCKS_OF_A_LAUNCH))
    return _LAUNCHES.get(name, 1)


def _zeros(func: Any, args: Sequence[Any], named: dict[str, Any]) -> Any:
    """What a product returns, filled with zeros; one that writes into a given tensor leaves it as it is."""
    if func._schema.is_mutable:
        return named.get("out", args[0])
    results = func(*tree_map_only(Tensor, lambda value: value.to("meta"), args), **named)
    return tree_map_only(Tensor, lambda value: torch.zeros_like(value, device="cpu"), results)


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
    if name in ("_unsafe_view", "_reshape_alias", *_HOST_ONLY) or name.startswith(("empty", "new_empty")):
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
