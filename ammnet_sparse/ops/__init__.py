"""The operators: schema, readable reference, fake and autograd formula of each. Compiled kernels take over."""

from ammnet_sparse.ops._library import kernel_libraries, out_of_range_operators
from ammnet_sparse.ops.fill_empty import fill_empty
from ammnet_sparse.ops.modulation import modulate
from ammnet_sparse.ops.perturbation import (
    draw_erase_probability,
    draw_shuffle,
    erase_voxels,
    one_hot_sites,
    shuffle_categories,
)
from ammnet_sparse.ops.projection import project_features

__all__ = [
    "draw_erase_probability",
    "draw_shuffle",
    "erase_voxels",
    "fill_empty",
    "kernel_libraries",
    "modulate",
    "one_hot_sites",
    "out_of_range_operators",
    "project_features",
    "shuffle_categories",
]
