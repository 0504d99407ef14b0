"""Depth with faults that cameras and registration leave in it: single wrong pixels, and regular patterns of holes.

Depth that has only few of either stays as it is.
"""

import numpy as np
from numpy.typing import NDArray

_AGREES = 0.1
"""Relative difference of depths up to which one pixel may be another's neighbor on a surface."""
_LEAST_OUTLIERS = 0.005
"""Share of the valid pixels that must be outliers: fewer do no harm."""
_PASSES = 3
"""Rounds of the search for outliers: if there are many, some are each other's neighbors."""
_REACH = 3
"""Pixels from a hole to the depth on either side of it that fills it."""
_SMOOTH = 0.03
"""Relative difference of these depths, per pixel between them, up to which they are one surface."""
_LEAST_FILLED = 0.1
"""Share of the valid pixels that must be such holes: the edges of a camera's shadows are fewer."""

Depth = NDArray[np.float32]


def without_outliers(depth: Depth) -> tuple[Depth, float]:
    """Depth with isolated outliers replaced by their neighbors' median, and the share of valid pixels replaced.

    An outlier differs by 10 % and more from its neighbors, most of which agree with each other. Where there are some,
    other pixels without a neighbor that agrees are no depth.

    Args:
        depth: [rows, columns] meters, 0 where missing.
    """
    shares: list[float] = []
    while len(shares) < _PASSES:
        depth, share = _outlier_pass(depth)
        if not share:
            break
        shares.append(share)
    return depth, sum(shares)


def _outlier_pass(depth: Depth) -> tuple[Depth, float]:
    """The same, for outliers among whose neighbors are few others."""
    num_valid = np.count_nonzero(depth)
    if not _may_have_outliers(depth):
        return depth, 0.0
    padded = np.pad(depth, 1)
    agreeing = np.zeros(padded.shape, dtype=np.int8)
    for rows, columns in ((0, 1), (1, 0), (1, 1), (1, -1)):
        other = np.roll(padded, (-rows, -columns), (0, 1))
        agrees = np.abs(padded - other) < _AGREES * np.minimum(padded, other)
        agreeing += agrees
        agreeing += np.roll(agrees, (rows, columns), (0, 1))
    v, u = np.nonzero((depth > 0) & (agreeing[1:-1, 1:-1] <= 1))
    if len(v) < _LEAST_OUTLIERS * num_valid:
        return depth, 0.0
    around = [(down, across) for down in range(3) for across in range(3) if (down, across) != (1, 1)]
    neighbors = np.stack([padded[v + down, u + across] for down, across in around])
    neighbors = np.sort(np.where(neighbors > 0, neighbors, np.inf), axis=0)
    count = np.isfinite(neighbors).sum(axis=0)
    median = neighbors[np.maximum(count - 1, 0) // 2, np.arange(len(v))]
    with np.errstate(invalid="ignore"):
        alike = (np.abs(neighbors - median) < _AGREES * median).sum(axis=0)
        is_outlier = (count >= 4) & (alike >= 0.6 * count) & (np.abs(depth[v, u] - median) > _AGREES * median)
    share = float(is_outlier.sum() / max(num_valid, 1))
    if share < _LEAST_OUTLIERS:
        return depth, 0.0
    mended = depth.copy()
    mended[v[is_outlier], u[is_outlier]] = median[is_outlier]
    is_alone = (agreeing[v + 1, u + 1] == 0) & (count > 0) & ~is_outlier  # beside an edge, or another outlier
    mended[v[is_alone], u[is_alone]] = 0
    return mended, share


def _may_have_outliers(depth: Depth) -> bool:
    """A quick look at every fourth row: whether pixels between two that agree are often outliers."""
    left, middle, right = depth[::4, :-2], depth[::4, 1:-1], depth[::4, 2:]
    is_between = (left > 0) & (middle > 0) & (right > 0)
    if is_between.sum() < 0.5 * np.count_nonzero(middle):
        return True  # unknown
    is_between &= np.abs(left - right) < _AGREES * left
    is_apart = is_between & (np.abs(middle - left) > _AGREES * left)
    return bool(is_apart.sum() >= 0.5 * _LEAST_OUTLIERS * is_between.sum())


def without_pattern(depth: Depth) -> tuple[Depth, float]:
    """Depth whose small holes within a surface are filled, and their share of the image, if they are many.

    Depth that was registered to a larger image, or of which a camera delivers every second row, has such holes
    everywhere.

    Args:
        depth: [rows, columns] meters, 0 where missing.
    """
    valid = depth > 0
    num_valid = int(valid.sum())
    fillable = _between_along(_between_along(valid).T).T
    if fillable.sum() - num_valid < max(1, _LEAST_FILLED * num_valid):
        return depth, 0.0
    filled = _filled_along(_filled_along(depth).T).T
    num_filled = np.count_nonzero(filled) - num_valid
    if num_filled < max(1, _LEAST_FILLED * num_valid):
        return depth, 0.0
    return np.ascontiguousarray(filled), num_filled / depth.size


def _between_along(valid: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels that are valid, or have valid ones on both sides in their row, near enough."""
    before, behind = np.zeros_like(valid), np.zeros_like(valid)
    for distance in range(1, _REACH + 1):
        before[:, distance:] |= valid[:, :-distance]
        behind[:, :-distance] |= valid[:, distance:]
    return valid | (before & behind)


def _filled_along(depth: Depth) -> Depth:
    """Holes filled from the valid pixels before and behind them in their row, inverse depth linearly."""
    padded = np.pad(depth, ((0, 0), (_REACH, _REACH)))
    columns = depth.shape[1]
    before, behind = np.zeros_like(depth), np.zeros_like(depth)
    to_before, to_behind = np.zeros_like(depth), np.zeros_like(depth)
    for distance in range(_REACH, 0, -1):  # the nearest last
        for side, values, steps in ((-distance, before, to_before), (distance, behind, to_behind)):
            shifted = padded[:, _REACH + side : _REACH + side + columns]
            np.copyto(values, shifted, where=shifted > 0)
            np.copyto(steps, distance, where=shifted > 0)
    gap = to_before + to_behind
    is_inside = (depth == 0) & (before > 0) & (behind > 0)
    is_inside &= np.abs(before - behind) < _SMOOTH * gap * np.minimum(before, behind)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = gap / (to_behind / before + to_before / behind)
    return np.where(is_inside, between, depth).astype(np.float32)
