"""The conventions of a set, judged by its content: a file of another convention has the right shape and type.

Each measure compares what must agree: pixels hit surfaces, so at a hit voxel the TSDF is near 0 and the labels
are mostly occupied. Medians over a set are judged. Thresholds are far from the values of published frames (795 of NYU:
median |TSDF| of hit voxels 0.055 to 0.11 per frame, occupied share of hit voxels 0.26 to 0.88). Single frames are
judged by their TSDF alone, which is clearly unlike the others' if its convention is.
"""

import dataclasses
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.data.frame import Frame
from ammnet_sparse.data.grid import IGNORE_LABEL, NUM_PIXELS, UNMAPPED
from ammnet_sparse.data.set_info import SetInfo
from ammnet_sparse.data.sets.projection_fit import axes_in_order, judge_mapping
from ammnet_sparse.data.volumes.tsdf import Unobserved, unflip_tsdf
from ammnet_sparse.files.errors import abbreviated

_FEWEST_HITS = 200
"""Least number of hit voxels of a frame that is judged."""
_FLIPPED = 0.6
"""Median |TSDF| of hit voxels above which a set has the other convention; in practice it is 0.1 or 0.9. A frame whose
median is that far from the set's has the other convention."""
_SATURATED, _ALL = 0.3, 0.9
_NEAR_SURFACE = 0.45
"""Share of hit voxels with 0 < |TSDF| < 0.5 below which TSDF and mapping do not match."""
_OCCUPIED = 0.3
"""Share of hit voxels that labels occupy: enough for another order of axes to be the right one."""
_HARDLY_OCCUPIED, _FEW_FRAMES = (0.08, 0.15), 5
"""The share that is too small in any case, for small and for large sets: two frames of 795 have 0.10 and 0.12."""
_BETTER = 1.5
"""How many times more hit voxels another order of axes must find occupied; 1.36 times at most in published frames."""
_FLOOR_LEVELS = 3
_FLOOR_SHARE, _FEWEST_FLOOR_VOXELS = 0.9, 100
_SMALL_IMAGE = 0.26
"""Share of the pixels that the mapping of a half-size image reaches."""
_OTHER_AXES = ("X, Y, height", "Y, height, X", "Y, X, height", "height, X, Y", "height, Y, X")
FLIPPED_SURFACE, LEAST_UNOBSERVED = 0.9995, 0.1
"""The flipped TSDF that counts as +1; the share of a frame's voxels with one value that makes it unobserved space."""
_FLIPS = {"X mirrored": 0, "height upside down": 1, "Y mirrored": 2}


@dataclasses.dataclass(frozen=True, eq=False)
class FrameConventions:
    """The measures of a frame for the conventions of its files; NaN where it shows nothing.

    Attributes:
        distance: median |TSDF| of hit voxels, not flipped.
        near_surface: share of hit voxels with |TSDF| < 0.5, unobserved ones (exactly 0) left out.
        unobserved, saturated: share of hit voxels with a TSDF of exactly 0, and of 1 or -1.
        occupied: share of hit voxels that labels occupy, with the axes of the layout.
        occupied_otherwise: the same with the labels' axes in other orders or reversed, by that order.
        floor: [classes, 2] voxels of each class below and above the third level.
        last_pixel: largest pixel of the mapping.
        mapping: what is wrong with the mapping (``projection_fit``).
    """

    distance: float
    near_surface: float
    unobserved: float
    saturated: float
    occupied: float
    occupied_otherwise: dict[str, float]
    floor: NDArray[np.int64]
    last_pixel: int
    mapping: tuple[str, ...]


def conventions_of(frame: Frame) -> FrameConventions | None:
    """The measures of one frame; None with too few hit voxels."""
    hit = frame.mapping != UNMAPPED
    if int(hit.sum()) < _FEWEST_HITS:
        return None
    distance = np.abs(unflip_tsdf(frame.tsdf[hit]) if frame.tsdf_is_flipped else frame.tsdf[hit])
    occupied, otherwise = np.nan, dict[str, float]()
    floor = np.zeros((frame.info.num_classes, 2), dtype=np.int64)
    if frame.label is not None:
        occupied, otherwise = _occupied_shares(frame.label, hit)
        floor = _heights(frame.label, frame.info.num_classes)
    return FrameConventions(
        distance=float(np.median(distance)),
        near_surface=float(((distance > 0) & (distance < 0.5)).mean()),
        unobserved=float((distance == 0).mean()),
        saturated=float((distance > 0.9985).mean()),
        occupied=occupied,
        occupied_otherwise=otherwise,
        floor=floor,
        last_pixel=int(frame.mapping.max()),
        mapping=judge_mapping(frame.mapping),
    )


def convention_problems(frames: Mapping[str, FrameConventions], *, info: SetInfo) -> list[str]:
    """What is wrong with the conventions of a set, one line each; empty if nothing is, or nothing can be judged.

    Args:
        frames: of the frames that could be judged, by their ids.
        info: the set of the frames, whose TSDF may be flipped, and whose floor may have a class.
    """
    if not frames:
        return []
    judged = list(frames.values())
    return [
        *_tsdf_problems(judged, is_flipped=info.tsdf_is_flipped),
        *_odd_tsdf_problems(frames),
        *_label_problems(judged),
        *_class_problems(judged, info),
        *_mapping_problems(judged),
    ]


def unobserved_of(flipped: NDArray[np.floating]) -> Unobserved | None:
    """Which value a flipped TSDF gives to unobserved space: ``free`` 0.001, ``surface`` +1; None if neither shows.

    Unobserved space is half of a published frame, and exactly +1 hardly occurs elsewhere.
    """
    as_surface = float((flipped >= FLIPPED_SURFACE).mean())
    as_free = float((np.abs(np.abs(flipped) - 0.001) < 5e-4).mean())
    if as_surface >= LEAST_UNOBSERVED:
        return "surface"
    return "free" if as_free >= LEAST_UNOBSERVED else None


def _occupied_shares(label: NDArray[np.uint8], hit: NDArray[np.bool_]) -> tuple[float, dict[str, float]]:
    is_occupied = ((label > 0) & (label != IGNORE_LABEL)).reshape(-1)
    places, shape = np.argwhere(hit), label.shape

    def share(voxels: NDArray[np.int64], axes: Sequence[int]) -> float:
        flat = np.ravel_multi_index(tuple(voxels[:, axis] for axis in axes), tuple(shape[axis] for axis in axes))
        return float(is_occupied[flat].mean())

    otherwise = {f"axes ({order})": share(places, axes_in_order(order)) for order in _OTHER_AXES}
    for name, axis in _FLIPS.items():
        turned = places.copy()
        turned[:, axis] = shape[axis] - 1 - turned[:, axis]
        otherwise[name] = share(turned, (0, 1, 2))
    return share(places, (0, 1, 2)), otherwise


def _heights(label: NDArray[np.uint8], num_classes: int) -> NDArray[np.int64]:
    low, all_levels = (
        np.bincount(part[part < num_classes], minlength=num_classes) for part in (label[:, :_FLOOR_LEVELS], label)
    )
    return np.stack([low, all_levels - low], axis=1).astype(np.int64)


def _tsdf_problems(frames: Sequence[FrameConventions], *, is_flipped: bool) -> list[str]:
    distance, near, unobserved, saturated = (
        float(np.median([getattr(frame, name) for frame in frames]))
        for name in ("distance", "near_surface", "unobserved", "saturated")
    )
    apart = "TSDF and mapping do not match (axes exchanged or reversed, or files of other frames)"
    if distance > _FLIPPED:
        stored = 1 - distance if is_flipped else distance
        expected, found = ("about 0.9", "an unflipped TSDF") if is_flipped else ("0.05 to 0.2", "a flipped TSDF")
        advice = "make it again with 'prepare --flipped'" if is_flipped else "flip it back: sign(f) (1 - |f|)"
        doubt = f", or {apart}" if saturated > _SATURATED else ""
        return [
            f"TSDF: expected a median |TSDF| of hit voxels of {expected}, found {stored:.2f}: {found} in this layout"
            f"{doubt}; {advice}"
        ]
    if near < _NEAR_SURFACE and unobserved < _ALL:
        return [
            f"TSDF: expected hit voxels near the surface (|TSDF| < 0.5), found {near:.0%} of them: {apart}; make them "
            "again"
        ]
    return []


def _odd_tsdf_problems(frames: Mapping[str, FrameConventions]) -> list[str]:
    """Single frames that the median over the set does not show."""
    usual = statistics.median_low(frame.distance for frame in frames.values())
    odd = [name for name, frame in frames.items() if abs(frame.distance - usual) > _FLIPPED]
    if not odd:
        return []
    return [
        f"TSDF: expected one convention in all frames, found {len(odd)} of {len(frames)} unlike the others: "
        f"{abbreviated(odd, limit=100)} (median |TSDF| of hit voxels {frames[odd[0]].distance:.2f}, usually "
        f"{usual:.2f}): flipped or not, or the TSDF of another frame; store all alike"
    ]


def _label_problems(frames: Sequence[FrameConventions]) -> list[str]:
    shares = [frame.occupied for frame in frames if np.isfinite(frame.occupied)]
    if not shares:
        return []
    share = float(np.median(shares))
    names = next(frame.occupied_otherwise for frame in frames if frame.occupied_otherwise)
    others = {
        name: float(np.median([frame.occupied_otherwise[name] for frame in frames if frame.occupied_otherwise]))
        for name in names
    }
    best = max(others, key=lambda name: others[name])
    is_better = others[best] >= max(_OCCUPIED, _BETTER * share)
    if not is_better and share >= _HARDLY_OCCUPIED[len(shares) >= _FEW_FRAMES]:
        return []
    guess = f"; read with {best}, {others[best]:.0%} would be" if is_better else ""
    return [
        f"labels: expected about half of the hit voxels to be occupied in the labels, found {share:.0%}{guess}: labels "
        "and mapping do not match (axes exchanged or reversed, or files of other frames); store axes in "
        "the order (X, height, Y)"
    ]


def _class_problems(frames: Sequence[FrameConventions], info: SetInfo) -> list[str]:
    """The floor identifies the class list: no other class lies only at the bottom of the grid."""
    if "floor" not in info.classes:
        return []
    floor = info.class_names.index("floor")
    low, high = sum(frame.floor for frame in frames).T  # type: ignore[union-attr]
    total = low + high
    share = low / np.maximum(total, 1)
    is_flat = (total >= _FEWEST_FLOOR_VOXELS) & (share >= _FLOOR_SHARE)
    is_flat[0] = False
    if (total[floor] and share[floor] >= 0.5) or not is_flat.any():
        return []
    flattest = int(np.argmax(np.where(is_flat, total, 0)))
    return [
        f"labels: expected the floor, class {floor}, at the bottom of the grid, found class {flattest} there and "
        f"{share[floor]:.0%} of class {floor}: labels of another list of classes; map them to the "
        f"{info.num_classes - 1} classes of the set"
    ]


def _mapping_problems(frames: Sequence[FrameConventions]) -> list[str]:
    found = Counter(problem for frame in frames for problem in frame.mapping)
    problems = [
        f"mapping: {problem} ({count} of {len(frames)} frames that can be judged); make the files again"
        for problem, count in found.items()
        if 2 * count > len(frames)
    ]
    last = max(frame.last_pixel for frame in frames)
    if last < _SMALL_IMAGE * NUM_PIXELS and not problems:
        problems.append(
            f"mapping: expected pixels up to {NUM_PIXELS - 1}, of images of 480 x 640, found none above {last}: pixels "
            "of a smaller image; make the mapping again from images of that size"
        )
    return problems
