"""Cross-modal modulation, the paper's equation 2: ``features * (1 + sigmoid(scale)) + bias`` in one operator.

Only ``features`` and ``scale`` are saved for the backward pass, which recomputes the sigmoid. In plain PyTorch the same
expression saves two more tensors of that size.
"""

from typing import Any

import torch
from torch import Tensor

from ammnet_sparse.ops._library import (
    FLOAT_TYPES,
    accumulation_dtype,
    check_same_device,
    define_operator,
    forbid_autograd,
    register_autograd,
)


def modulate(features: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Scales and shifts features of one modality by those of another (equation 2).

    float16 and bfloat16 are computed in float32 and rounded once. Inputs of different types, as under autocast, are
    first converted to their common type.

    Args:
        features: [N, C], or any shape.
        scale: as ``features``; the gate is ``1 + sigmoid(scale)``, between 1 and 2.
        bias: as ``features``.

    Returns:
        Shape and layout of ``features``, the common type of the three. Differentiable once in all three.

    Raises:
        ValueError: different shapes or devices.
        TypeError: a type that is not float16, bfloat16, float32 or float64.
    """
    if not features.shape == scale.shape == bias.shape:
        raise ValueError(
            f"modulate: expected three equal shapes, found features {list(features.shape)}, "
            f"scale {list(scale.shape)}, bias {list(bias.shape)}"
        )
    check_same_device(features, scale=scale, bias=bias)
    dtype = features.dtype
    if not dtype == scale.dtype == bias.dtype:
        dtype = torch.promote_types(torch.promote_types(dtype, scale.dtype), bias.dtype)
        features, scale, bias = features.to(dtype), scale.to(dtype), bias.to(dtype)
    if dtype not in FLOAT_TYPES:
        raise TypeError(f"modulate: expected float16, bfloat16, float32 or float64, found {dtype}")
    return _modulate(features, scale, bias)


def _modulate_reference(features: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    gate = torch.sigmoid(scale.to(accumulation_dtype(features.dtype))).add_(1)
    return _as_type_and_layout_of(features, torch.addcmul(bias.to(gate.dtype), features.to(gate.dtype), gate))


def _as_type_and_layout_of(example: Tensor, values: Tensor) -> Tensor:
    """``values``, copied only where type or strides differ from what ``torch.empty_like(example)`` would have."""
    result = torch.empty_like(example)
    if values.dtype == result.dtype and values.stride() == result.stride():
        return values
    return result.copy_(values)


def _modulate_backward_reference(grad: Tensor, features: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of features and scale. That of bias is ``grad`` itself."""
    dtype = accumulation_dtype(features.dtype)
    grad = grad.to(dtype)
    sigmoid = torch.sigmoid(scale.to(dtype))
    grad_features = torch.addcmul(grad, grad, sigmoid)  # grad * (1 + sigmoid)
    slope = torch.addcmul(sigmoid, sigmoid, sigmoid, value=-1)  # sigmoid * (1 - sigmoid)
    grad_scale = slope.mul_(grad).mul_(features)
    return _as_type_and_layout_of(features, grad_features), _as_type_and_layout_of(scale, grad_scale)


_modulate = define_operator(
    "modulate",
    "(Tensor features, Tensor scale, Tensor bias) -> Tensor",
    reference=_modulate_reference,
    fake=lambda features, scale, bias: torch.empty_like(features),
)
_modulate_backward = define_operator(
    "modulate_backward",
    "(Tensor grad, Tensor features, Tensor scale) -> (Tensor, Tensor)",
    reference=_modulate_backward_reference,
    fake=lambda grad, features, scale: (torch.empty_like(features), torch.empty_like(scale)),
)


def _save_inputs(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    features, scale, _ = inputs
    # The gradient of the bias needs neither, so neither is kept.
    if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
        ctx.save_for_backward(features, scale)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor]:
    saved = ctx.saved_tensors  # once: torch.utils.checkpoint refuses to unpack a second time
    if not saved:
        return None, None, grad
    grad_features, grad_scale = _modulate_backward(grad, *saved)
    return grad_features, grad_scale, grad


register_autograd(_modulate, _gradient, setup_context=_save_inputs)
forbid_autograd(_modulate_backward)
