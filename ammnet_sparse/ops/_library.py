"""How an operator becomes known to PyTorch, and the checks that operators share.

Every operator ``ammnet_sparse::<name>`` has a schema, a reference for all devices, a fake for tracing and, where it
is differentiable, an autograd formula that calls ``<name>_backward``, an operator like any other. The reference is
registered as CompositeExplicitAutograd, so a kernel registered for the dispatch key ``CPU`` or ``CUDA`` takes over
from it without anything else changing.

A caller sees the range of indices and labels checked on the CPU. Elsewhere that would wait for the device: there an
index out of range reads and writes nothing, and its row is zero.
"""

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

NAMESPACE = "ammnet_sparse"

INTEGER_TYPES = frozenset({torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64})
"""Types of labels and indices."""
FLOAT_TYPES = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
"""Types of features."""


def define_operator(
    name: str, schema: str, *, reference: Callable[..., Any], fake: Callable[..., Any]
) -> torch._ops.OpOverload:
    """Registers an operator and returns it.

    Args:
        name: what stands after ``ammnet_sparse::``.
        schema: arguments and results, ``(Tensor features, ...) -> Tensor``. Sizes and seeds are ``SymInt``, so that
            a traced program does not depend on their values; a kernel receives them as int64.
        reference: runs on every device for which no compiled kernel is registered.
        fake: shapes, types and strides of the results, without values.
    """
    qualified = f"{NAMESPACE}::{name}"
    torch.library.define(qualified, schema, tags=torch.Tag.pt2_compliant_tag)
    torch.library.impl(qualified, "default", reference)
    torch.library.register_fake(qualified, fake)
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def register_autograd(
    operator: torch._ops.OpOverload, backward: Callable[..., Any], *, setup_context: Callable[..., None]
) -> None:
    """Registers the formula of the gradient: ``setup_context`` keeps what ``backward`` needs."""
    torch.library.register_autograd(operator, backward, setup_context=setup_context)


def forbid_autograd(operator: torch._ops.OpOverload) -> None:
    """Makes a gradient through ``operator``, itself a backward formula, an error instead of silently missing."""

    def backward(ctx: Any, *grads: Tensor) -> NoReturn:
        raise NotImplementedError(
            f"{operator}: second derivatives are not implemented; call backward() without create_graph=True"
        )

    torch.library.register_autograd(operator, backward)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type in which sums are formed: float64 for float64, float32 for everything shorter."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_features(name: str, features: Tensor, *, ndim: int) -> None:
    """Raises TypeError or ValueError unless ``features`` has floating type and ``ndim`` axes."""
    if features.dtype not in FLOAT_TYPES:
        raise TypeError(f"{name}: expected float16, bfloat16, float32 or float64, found {features.dtype}")
    if features.ndim != ndim:
        raise ValueError(f"{name}: expected {ndim} axes, found shape {list(features.shape)}")


def check_integers(name: str, values: Tensor) -> None:
    """Raises TypeError unless ``values`` has an integer type (bool is none)."""
    if values.dtype not in INTEGER_TYPES:
        raise TypeError(f"{name}: expected uint8, int8, int16, int32 or int64, found {values.dtype}")


def check_same_device(first: Tensor, **others: Tensor) -> None:
    """Raises ValueError where one of ``others`` lies on another device than ``first``."""
    for name, other in others.items():
        if other.device != first.device:
            raise ValueError(f"{name}: expected on {first.device} like the first argument, found on {other.device}")


def check_seed(seed: int) -> None:
    """Raises ValueError for a seed that does not fit 64 bits."""
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed: expected a signed 64-bit integer, found {seed}")


def check_range(name: str, values: Tensor, *, low: int, high: int) -> None:
    """Raises IndexError where an element of ``values`` on the CPU lies outside ``low`` .. ``high``, both included."""
    if values.device.type != "cpu" or values.numel() == 0:
        return
    smallest, largest = (int(bound) for bound in values.aminmax())
    if smallest < low or largest > high:
        raise IndexError(f"{name}: expected values in {low} .. {high}, found {smallest} .. {largest}")
