"""The operators: schema, readable reference, fake and autograd formula of each; compiled kernels take over."""

from ammnet_sparse.ops._library import kernel_libraries, out_of_range_operators
from ammnet_sparse.ops.gather import gather_taps, sum_rows, sum_taps
from ammnet_sparse.ops.modulation import modulate
from ammnet_sparse.ops.normalization import Normalized, RunningStatistics, apply_normalization, normalize_sites
from ammnet_sparse.ops.perturbation import (
    draw_erase_probability,
    draw_shuffle,
    erase_voxels,
    one_hot_sites,
    shuffle_categories,
)
from ammnet_sparse.ops.projection import fill_empty, project_features

__all__ = [
    "Normalized",
    "RunningStatistics",
    "apply_normalization",
    "draw_erase_probability",
    "draw_shuffle",
    "erase_voxels",
    "fill_empty",
    "gather_taps",
    "kernel_libraries",
    "modulate",
    "normalize_sites",
    "one_hot_sites",
    "out_of_range_operators",
    "project_features",
    "shuffle_categories",
    "sum_rows",
    "sum_taps",
]
