"""Plans the site sets of a batch together, so that the host waits only once for all counts that it needs.

Which cells are sites at the coarser scales follows from dense masks, and so do the numbers of sites by residue that
transposed convolutions are grouped by. Planned sets are cached where they would otherwise be built on first use.
"""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from ammnet_sparse.sparse.kernel_maps import read_key, residue_key, strided_key, strided_sites
from ammnet_sparse.sparse.kernels import (
    AXIS_HEIGHT,
    AXIS_Y,
    UP_KERNEL,
    axis_kernel,
    half_shape,
    read_mask,
    residue_counts,
    strided_mask,
)
from ammnet_sparse.sparse.sites import SiteSet, sites_from_masks

WAY_DOWN = (axis_kernel(AXIS_Y, stride=2), axis_kernel(AXIS_HEIGHT, stride=2))
"""From a block's sites to its intermediate ones; after the third convolution every cell is a site."""


def planned_sites(masks: Sequence[Tensor]) -> list[SiteSet]:
    """Sites of masks at full resolution and the sites that the network derives from them, in one wait for the device.

    Args:
        masks: each [B, X, H, Y] bool, of one shape.
    """
    frames = masks[0].shape[0]
    together = torch.cat(list(masks)) if len(masks) > 1 else masks[0]
    shape = (together.shape[1], together.shape[2], together.shape[3])
    steps: list[tuple[int, Hashable, Tensor]] = []  # the level it is derived from, its key there, masks of all
    reached, parent = together, -1
    for kernel in WAY_DOWN:
        reached = strided_mask(reached, kernel)
        steps.append((parent, strided_key(kernel), reached))
        parent = len(steps) - 1
    half = half_shape(shape)
    read = read_mask(together, UP_KERNEL, half)
    steps.append((-1, read_key(UP_KERNEL, half), read))
    levels = [together, *(mask for _, _, mask in steps)]
    parts = [part for level in levels for part in level.split(frames)]
    numbers = [residue_counts(part, UP_KERNEL.stride) for part in (*together.split(frames), *read.split(frames))]
    sites, counts = sites_from_masks(parts, counts=numbers)
    num = len(masks)
    for index in range(num):
        for level, (parent, key, _) in enumerate(steps, start=1):
            owner = sites[(parent + 1) * num + index]
            if not owner.is_full:
                owner.store(key, sites[level * num + index])
        sites[index].store(residue_key(UP_KERNEL.stride), counts[index])
        sites[index - num].store(residue_key(UP_KERNEL.stride), counts[num + index])
    return sites[:num]


def repeated_sites(sites: SiteSet, times: int) -> SiteSet:
    """A batch of ``times`` as many scenes: those of ``sites``, then the same once more, and so on; shared once built.

    The sets that strided blocks derive from it are repetitions of those derived from ``sites``.
    """
    repeated = sites.repeated(times)
    single, multiple = sites, repeated
    for kernel in WAY_DOWN:
        if multiple.is_full:
            break
        single = strided_sites(single, kernel)
        multiple.store(strided_key(kernel), single.repeated(times))
        multiple = strided_sites(multiple, kernel)
    return repeated
