"""The operators that make mapping and TSDF of a depth image: compiled (csrc/cpu/tsdf.cpp), or loops for numba."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ammnet_sparse.data.volumes.tsdf_loops import mapping_of_loops, tsdf_of_loops
from ammnet_sparse.ops._library import define_operator


def as_tensors(arrays: Sequence[NDArray[np.floating]]) -> list[Tensor]:
    """Copies, as PyTorch warns of arrays that cannot be written."""
    return [torch.from_numpy(np.array(array, order="C")) for array in arrays]


def map_depth_reference(
    depth: Tensor, camera: Tensor, pose: Tensor, origin: Tensor, size: float, x: int, height: int, y: int
) -> Tensor:
    """[x, height, y] int32, the last pixel that falls in each voxel; the arguments are those of ``tsdf.cpp``."""
    arrays = [tensor.numpy() for tensor in (depth, camera, pose, origin)]
    return torch.from_numpy(mapping_of_loops(arrays, size, (x, height, y)))


def tsdf_of_depth_reference(
    depth: Tensor,
    camera: Tensor,
    pose: Tensor,
    origin: Tensor,
    rotation: Tensor,
    translation: Tensor,
    magnitude: Tensor,
    size: float,
    x: int,
    height: int,
    y: int,
) -> Tensor:
    """[x, height, y] float32; the arguments are those of ``tsdf.cpp``."""
    tensors = (depth, camera, pose, origin, rotation, translation, magnitude)
    return torch.from_numpy(tsdf_of_loops([tensor.numpy() for tensor in tensors], size, (x, height, y)))


map_depth = define_operator(
    "map_depth",
    "(Tensor depth, Tensor camera, Tensor pose, Tensor origin, float size, SymInt x, SymInt height, SymInt y) "
    "-> Tensor",
    reference=map_depth_reference,
    fake=lambda depth, camera, pose, origin, size, *shape: depth.new_empty(shape, dtype=torch.int32),
)
tsdf_of_depth = define_operator(
    "tsdf_of_depth",
    "(Tensor depth, Tensor camera, Tensor pose, Tensor origin, Tensor rotation, Tensor translation, Tensor magnitude, "
    "float size, SymInt x, SymInt height, SymInt y) -> Tensor",
    reference=tsdf_of_depth_reference,
    fake=lambda depth, *others: depth.new_empty(others[-3:]),
)
