"""Devices by name, and the precision that suits them."""

from typing import Literal, get_args

import torch

Precision = Literal["auto", "float32", "bfloat16"]
"""Of a prediction; auto: bfloat16 on CPUs with instructions for it, float32 elsewhere."""


def dtype_of(precision: Precision, device: torch.device) -> torch.dtype:
    """``torch.float32`` or ``torch.bfloat16``; ValueError for another ``precision``."""
    if precision not in get_args(Precision):
        raise ValueError(f"precision: expected {', '.join(get_args(Precision))}, found {precision!r}")
    if precision == "auto":
        multiplies_it = device.type == "cpu" and (
            torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        )
        return torch.bfloat16 if multiplies_it else torch.float32
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def checked_device(device: torch.device | str) -> torch.device:
    """A device that this machine has. ``meta`` passes: it holds no values.

    Raises:
        ValueError: not the name of a device, or a device that this machine or this build of PyTorch lacks.
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"device: expected cpu, cuda or cuda:0, found {device!r}") from error
    # PyTorch stores an index in 8 bits; larger ones become negative.
    if found.type == "cuda" and not 0 <= (found.index or 0) < torch.cuda.device_count():
        raise ValueError(
            f"device: expected one of {torch.cuda.device_count()} CUDA devices, found {str(device)!r}; use cpu"
        )
    if found.type not in ("cpu", "cuda", "meta"):
        try:
            torch.empty(1, device=found)
        except (RuntimeError, NotImplementedError, AssertionError, ImportError) as error:
            raise ValueError(
                f"device: expected cpu, cuda or cuda:0, found {str(device)!r}, which is not available"
            ) from error
    return found
