"""Devices and types that every operator is tested on, and what tests of operators look at."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ammnet_sparse.ops import gather, modulation, normalization, perturbation, projection
from ammnet_sparse.ops.projection import _fill_empty_backward_reference, _fill_empty_reference

EMULATION = os.environ.get("AMMNET_SPARSE_EMULATION", "")
"""The library of the CUDA kernels for the CPU where they are to be tested (emulation/), else nothing."""

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
DEVICE_KERNELS = [
    pytest.param("cpu", marks=pytest.mark.emulation, id="emulation"),
    pytest.param("cuda", marks=pytest.mark.cuda),
]
"""Where CUDA kernels run, for what they alone do."""
FLOAT_TYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
INTEGER_TYPES = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]

OPS = torch.ops.ammnet_sparse

REFERENCES: dict[str, Callable[..., Any]] = {
    "project_features": projection._project_features_reference,
    "project_features_backward": projection._project_features_backward_reference,
    "fill_empty": _fill_empty_reference,
    "fill_empty_backward": _fill_empty_backward_reference,
    "erase_voxels": perturbation._erase_voxels_reference,
    "shuffle_categories": perturbation._shuffle_categories_reference,
    "one_hot_sites": perturbation._one_hot_sites_reference,
    "gather_taps": gather._gather_taps_reference,
    "gather_taps_backward": gather._gather_taps_backward_reference,
    "sum_rows": gather._sum_rows_reference,
    "modulate": modulation._modulate_reference,
    "modulate_backward": modulation._modulate_backward_reference,
    "normalize_sites": normalization._normalize_sites_reference,
    "apply_normalization": normalization._apply_normalization_reference,
    "normalize_sites_backward": normalization._normalize_sites_backward_reference,
}
"""Every operator that has compiled kernels, with what runs without them."""


class Replaced(TorchDispatchMode):
    """Runs other functions in the place of operators inside the block; counts the calls."""

    supports_higher_order_operators = True  # what opcheck wraps operators in that change an argument

    def __init__(self, functions: Mapping[str, Callable[..., Any]]) -> None:
        """``functions``: by the name of the operator."""
        super().__init__()
        self.calls = 0
        self.replaced = {getattr(OPS, name).default: function for name, function in functions.items()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Tensors without values, in opcheck, have fakes.
        is_real = all(type(arg) in (Tensor, torch.nn.Parameter) for arg in args if isinstance(arg, Tensor))
        if func in self.replaced and is_real:
            self.calls += 1
            return self.replaced[func](*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


class References(Replaced):
    """Runs the references of the operators inside the block, where compiled kernels would run; counts the calls."""

    def __init__(self) -> None:
        super().__init__(REFERENCES)


@contextmanager
def saved_tensors() -> Iterator[list[Tensor]]:
    """Collects the tensors that autograd keeps for the backward pass inside the block."""
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


@contextmanager
def no_synchronization() -> Iterator[None]:
    """Makes waiting for the CUDA device an error inside the block; nothing if there is none."""
    if not torch.cuda.is_available():
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
