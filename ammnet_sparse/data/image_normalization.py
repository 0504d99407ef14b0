"""ImageNet's normalization of color images, which the backbones expect."""

import functools

import torch
from torch import Tensor

IMAGE_MEAN = (123.675, 116.28, 103.53)
"""ImageNet's mean of (red, green, blue), on the scale 0..255."""
IMAGE_DEVIATION = (58.395, 57.12, 57.375)
"""ImageNet's standard deviation, likewise."""


@functools.lru_cache(maxsize=16)
def color_planes(values: tuple[float, float, float], device: torch.device) -> Tensor:
    """[3, 1, 1] float32 of (red, green, blue). Cached, because creating it makes the host wait for the device."""
    return torch.tensor(values, dtype=torch.float32, device=device)[:, None, None]


def normalize_planes(planes: Tensor) -> Tensor:
    """[..., 3, rows, columns] float32 RGB on the scale 0..255, on any device, normalized in place."""
    return planes.sub_(color_planes(IMAGE_MEAN, planes.device)).div_(color_planes(IMAGE_DEVIATION, planes.device))
