"""A small network of depth alone, and views of a box room, for tests of completion."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ammnet_sparse.config import config_from_dict
from ammnet_sparse.models.ammnet import AMMNet
from ammnet_sparse.models.weights.files import save_weights

INTRINSICS = (518.9, 518.9, 319.5, 239.5)


def small_weights(folder: Path, *, inputs: str = "tsdf") -> Path:
    """Random weights of width 8 that read the TSDF alone, or 2D label maps too (``both``)."""
    torch.manual_seed(0)
    config = config_from_dict({"model": {"width": 8, "stem_widths": [3, 8], "inputs": inputs}}, source="test").model
    path = folder / "small.safetensors"
    save_weights(path, AMMNet(config).state_dict(), model_config=config, metadata={})
    return path


def room_depth(*, height: float = 1.4, pitch: float = 20.0, wall: float = 3.0) -> NDArray[np.float32]:
    """[480, 640] meters: floor, wall and a box on the floor, seen by a camera that looks down by ``pitch``."""
    fx, fy, cx, cy = INTRINSICS
    columns, rows = np.meshgrid((np.arange(640) - cx) / fx, (np.arange(480) - cy) / fy)
    angle = np.radians(pitch)
    forward = np.cos(angle) - rows * np.sin(angle)  # of the ray through each pixel, a meter along the optical axis
    down = np.sin(angle) + rows * np.cos(angle)
    to_floor = np.where(down > 1e-3, height / np.maximum(down, 1e-3), np.inf)
    depth = np.minimum(to_floor, np.where(forward > 1e-3, wall / np.maximum(forward, 1e-3), np.inf))
    to_box = np.where(forward > 1e-3, 2.0 / np.maximum(forward, 1e-3), np.inf)
    is_box = (np.abs(to_box * columns) < 0.4) & (to_box * down > height - 0.6) & (to_box * down < height)
    return np.where(is_box, np.minimum(to_box, depth), depth).astype(np.float32)
