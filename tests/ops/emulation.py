"""The CUDA kernels on the CPU (csrc/emulation), as one more implementation of the operators for CPU tensors.

``make emulate`` builds their library and names it in the environment variable AMMNET_SPARSE_EMULATION. They are
operators of a namespace of their own, ``ammnet_sparse_emulation``, with the schemas of the package's; ``Emulated``
calls them in the place of those. AMMNET_SPARSE_EMULATION_SEED, an integer, shuffles the order of their threads.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.ops.support import EMULATION, OPS, REAL, REFERENCES

NAMESPACE = "ammnet_sparse_emulation"


def _load() -> None:
    for name in (*REFERENCES, "take_out_of_range"):
        arguments = str(getattr(OPS, name).default._schema).partition("(")[2]
        torch.library.define(f"{NAMESPACE}::{name}", f"({arguments}")
    torch.ops.load_library(EMULATION)


if EMULATION:
    _load()


def has_kernel(name: str) -> bool:
    """Whether csrc/cuda holds a kernel of an operator, among those that the emulation registers."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{name}", "CPU")


class Emulated(TorchDispatchMode):
    """Runs the CUDA kernels of the operators on the CPU inside the block; counts the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        names = (*REFERENCES, "take_out_of_range")
        kernels = getattr(torch.ops, NAMESPACE)
        self.replaced = {getattr(OPS, name).default: getattr(kernels, name).default for name in names}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Tensors without values, in opcheck, have fakes.
        if func in self.replaced and all(type(arg) in REAL for arg in args if isinstance(arg, Tensor)):
            self.calls += 1
            return self.replaced[func](*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))
