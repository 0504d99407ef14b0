"""Gathers the rows that the taps of a convolution read into one row per target, so that it becomes a matrix product.

A *table* [N, T] holds the row of the features that tap t reads for target n, -1 for none. Its *inverse* [M, T] holds
the target for which tap t reads source m. The inverse exists because no tap of a convolution reads a source twice. The
gradient is therefore a sum over a row of the inverse and needs neither atomics nor sorting.
"""

from typing import Any

import torch
from torch import Tensor

from ammnet_sparse.ops._library import (
    accumulation_dtype,
    check_features,
    check_integers,
    check_range,
    check_same_device,
    checked,
    define_operator,
    forbid_autograd,
    register_autograd,
)


def gather_taps(features: Tensor, table: Tensor, inverse: Tensor | None = None) -> Tensor:
    """The rows that the taps of each target read, concatenated.

    Args:
        features: [M, C].
        table: [N, T] integer, rows of ``features`` in 0 .. M - 1, or -1 for a tap that reads nothing.
        inverse: [M, T] integer, rows n with ``table[n, t] == m``, or -1, for the backward pass. None if no gradient is
            needed.

    Returns:
        [N, T * C]: column ``t * C + c`` is channel c of the row that tap t reads, 0 if it reads none. The type of
        ``features``. Differentiable once in ``features``.

    Raises:
        ValueError: shapes that do not fit, tensors on different devices, or a gradient without ``inverse``.
        TypeError: features that are not floating point, or a table that is not of integers.
        IndexError: rows out of range (on the CPU; elsewhere see ``_library``).
    """
    check_features("gather_taps: features", features, ndim=2)
    check_integers("gather_taps: table", table)
    if table.ndim != 2:
        raise ValueError(f"gather_taps: table: expected [N, T], found {list(table.shape)}")
    check_same_device(features, table=table)
    if inverse is not None:
        check_integers("gather_taps: inverse", inverse)
        check_same_device(features, inverse=inverse)
        if tuple(inverse.shape) != (features.shape[0], table.shape[1]):
            raise ValueError(
                f"gather_taps: inverse: expected {[features.shape[0], table.shape[1]]}, found {list(inverse.shape)}"
            )
    elif features.requires_grad and torch.is_grad_enabled():
        raise ValueError("gather_taps: inverse: expected a table, as the features need a gradient, found None")
    return checked(_gather_taps(features, table, inverse))


def sum_taps(values: Tensor, inverse: Tensor) -> Tensor:
    """The transpose of ``gather_taps``: sums the values of all taps that read a source.

    Args:
        values: [N, T * C].
        inverse: [M, T] integer, rows of ``values``, -1 for none.

    Returns:
        [M, C]: the sum over t of ``values[inverse[m, t], t * C + c]``, accumulated in float32 (float64 for float64) and
        rounded once. Not differentiable.

    Raises:
        ValueError: shapes that do not fit, or tensors on different devices.
        TypeError: values that are not floating point, or an inverse that is not of integers.
        IndexError: rows out of range (on the CPU; elsewhere see ``_library``).
    """
    check_features("sum_taps: values", values, ndim=2)
    check_integers("sum_taps: inverse", inverse)
    check_same_device(values, inverse=inverse)
    if inverse.ndim != 2 or inverse.shape[1] == 0 or values.shape[1] % inverse.shape[1]:
        raise ValueError(
            f"sum_taps: expected values [N, T * C] and inverse [M, T], found {list(values.shape)} and "
            f"{list(inverse.shape)}"
        )
    return checked(_gather_taps_backward(values, inverse))


def sum_rows(features: Tensor, table: Tensor, owner: Tensor, *, scale: float = 1.0) -> Tensor:
    """Sums over disjoint groups of rows, such as the windows of a pooling.

    Args:
        features: [N, C].
        table: [M, T] integer: the rows of ``features`` of each of M sums, -1 for none; no row is in two sums.
        owner: [N] integer: the sum that each row belongs to, -1 for none, for the backward pass.
        scale: factor of the sums.

    Returns:
        [M, C]: accumulated in float32 (float64 for float64) and rounded once. Differentiable once in ``features``.

    Raises:
        ValueError: shapes that do not fit, or tensors on different devices.
        TypeError: features that are not floating point, or rows that are not integers.
        IndexError: rows out of range (on the CPU; elsewhere see ``_library``).
    """
    check_features("sum_rows: features", features, ndim=2)
    check_integers("sum_rows: table", table)
    check_integers("sum_rows: owner", owner)
    check_same_device(features, table=table, owner=owner)
    if table.ndim != 2 or tuple(owner.shape) != (features.shape[0],):
        raise ValueError(
            f"sum_rows: expected table [M, T] and owner {[features.shape[0]]}, found {list(table.shape)} and "
            f"{list(owner.shape)}"
        )
    return checked(_sum_rows(features, table, owner, scale))


def _gather_taps_reference(features: Tensor, table: Tensor, inverse: Tensor | None) -> Tensor:
    check_range("gather_taps: table", table, low=-1, high=features.shape[0] - 1)
    rows = table.long()
    is_there = (rows >= 0) & (rows < features.shape[0])
    if features.shape[0] == 0:
        return features.new_zeros(table.shape[0], table.shape[1] * features.shape[1])
    taken = features[rows.where(is_there, 0)]  # [N, T, C]
    return torch.where(is_there[:, :, None], taken, 0).flatten(1)


def _gather_taps_fake(features: Tensor, table: Tensor, inverse: Tensor | None) -> Tensor:
    return features.new_empty(table.shape[0], table.shape[1] * features.shape[1])


def _gather_taps_backward_reference(grad: Tensor, inverse: Tensor) -> Tensor:
    check_range("gather_taps: inverse", inverse, low=-1, high=grad.shape[0] - 1)
    num_taps = inverse.shape[1]
    parts = grad.view(grad.shape[0], num_taps, grad.shape[1] // num_taps).to(accumulation_dtype(grad.dtype))
    total = parts.new_zeros(inverse.shape[0], parts.shape[2])
    if grad.shape[0] == 0:
        return total.to(grad.dtype)
    for tap in range(num_taps):
        rows = inverse[:, tap].long()
        is_there = (rows >= 0) & (rows < grad.shape[0])
        total += torch.where(is_there[:, None], parts[rows.where(is_there, 0), tap], 0)
    return total.to(grad.dtype)


def _sum_rows_reference(features: Tensor, table: Tensor, owner: Tensor, scale: float) -> Tensor:
    check_range("sum_rows: table", table, low=-1, high=features.shape[0] - 1)
    values = features.to(accumulation_dtype(features.dtype))
    total = values.new_zeros(table.shape[0], features.shape[1])
    if features.shape[0] == 0:
        return total.to(features.dtype)
    for rows in table.long().unbind(1):
        is_there = (rows >= 0) & (rows < features.shape[0])
        total += torch.where(is_there[:, None], values[rows.where(is_there, 0)], 0)
    return total.mul_(scale).to(features.dtype)


_gather_taps = define_operator(
    "gather_taps",
    "(Tensor features, Tensor table, Tensor? inverse) -> Tensor",
    reference=_gather_taps_reference,
    fake=_gather_taps_fake,
)
_gather_taps_backward = define_operator(
    "gather_taps_backward",
    "(Tensor grad, Tensor inverse) -> Tensor",
    reference=_gather_taps_backward_reference,
    fake=lambda grad, inverse: grad.new_empty(inverse.shape[0], grad.shape[1] // inverse.shape[1]),
)


_sum_rows = define_operator(
    "sum_rows",
    "(Tensor features, Tensor table, Tensor owner, float scale) -> Tensor",
    reference=_sum_rows_reference,
    fake=lambda features, table, owner, scale: features.new_empty(table.shape[0], features.shape[1]),
)


def _save_inverse(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    if inputs[2] is not None:
        ctx.save_for_backward(inputs[2])


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    (inverse,) = ctx.saved_tensors
    return _gather_taps_backward(grad.contiguous(), inverse), None, None


register_autograd(_gather_taps, _gradient, setup_context=_save_inverse)
forbid_autograd(_gather_taps_backward)


def _save_owner(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, float], output: Tensor) -> None:
    ctx.save_for_backward(inputs[2])
    ctx.scale = inputs[3]


def _gradient_of_sums(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    (owner,) = ctx.saved_tensors
    # Each row's sum has one summand, that of its owner, so that the scale needs no pass of its own.
    return _sum_rows(grad.contiguous(), owner[:, None], owner, ctx.scale), None, None, None


register_autograd(_sum_rows, _gradient_of_sums, setup_context=_save_owner)
