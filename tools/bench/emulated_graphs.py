"""CUDA graphs imitated on a CPU: the operations that PyTorch dispatches are recorded with their memory and repeated."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from bench.operation_counter import Operations, is_view_or_allocation
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

_Result = TypeVar("_Result")


class EmulatedRecorder:
    """A recorder of ``sparse.graphs`` without a GPU.

    As in a CUDA graph nothing of Python is repeated: a value that the host reads while recording, or a Python number
    that changes from step to step, stays as it was.

    Attributes:
        num_repeated: recordings that were repeated so far, one launch each on a GPU.
    """

    num_repeated = 0

    def warm_up(self, run: Callable[[], object]) -> None:
        """Builds what is built on first use."""
        run()

    def record(self, run: Callable[[], _Result]) -> tuple[_Result, Callable[[], None]]:
        """What ``run`` returns, and a function that computes it again into the same memory.

        Raises:
            RuntimeError: the host would wait for a GPU, which a CUDA graph cannot record.
        """
        tape: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        with Operations() as counted, _Taped(tape):
            result = run()
        if counted.waits:
            raise RuntimeError(f"the host would wait for {', '.join(counted.waits)}")

        def repeat() -> None:
            EmulatedRecorder.num_repeated += 1
            with _disable_current_modes(), torch.no_grad():
                for function, arguments, named, before in tape:
                    _copy(function(*arguments, **named), before)

        return result, repeat


class _Taped(TorchDispatchMode):
    def __init__(self, tape: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]]) -> None:
        super().__init__()
        self._tape = tape

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if not is_view_or_allocation(func):
            self._tape.append((func, args, kwargs or {}, out))
        return out


def _copy(after: Any, before: Any) -> None:
    for new, old in zip(tree_leaves(after), tree_leaves(before), strict=True):
        if isinstance(new, Tensor) and new.data_ptr() != old.data_ptr():
            old.copy_(new)
