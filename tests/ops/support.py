"""Devices and types that every operator is tested on, and what tests of operators look at."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
FLOAT_TYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
INTEGER_TYPES = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]

OPS = torch.ops.ammnet_sparse


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
def no_synchronisation() -> Iterator[None]:
    """Makes waiting for the CUDA device an error inside the block."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
