"""The CUDA kernels on the CPU, as one more implementation of the operators for CPU tensors.

``make emulate`` builds their library and names it in the environment variable AMMNET_SPARSE_EMULATION. They are
operators of a namespace of their own, ``ammnet_sparse_emulation``, with the schemas of the package's; ``Emulated``
calls them in the place of those. AMMNET_SPARSE_EMULATION_SEED, an integer, shuffles the order of their threads.
"""

import torch

from tests.ops.support import EMULATION, OPS, REFERENCES, Replaced

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


class Emulated(Replaced):
    """Runs the CUDA kernels of the operators on the CPU inside the block; counts the calls."""

    def __init__(self) -> None:
        kernels = getattr(torch.ops, NAMESPACE)
        super().__init__({name: getattr(kernels, name).default for name in (*REFERENCES, "take_out_of_range")})
