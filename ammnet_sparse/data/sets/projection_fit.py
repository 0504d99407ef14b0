"""Whether a mapping is that of a camera: a projection is fitted to voxels and the pixels that hit them.

A camera sees the middle of voxel (x, h, y) at pixel (u, v) ~ P (x, h, y, 1). With the axes, the image size and the
directions of the layout, a few pixels of error remain (half a voxel); with others, hundreds. The sign of P's left part
tells left from right. Geometry decides, so one frame is enough, and a set without a real camera is not judged.
"""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.data.grid import IMAGE_SHAPE, UNMAPPED

_FEWEST_VOXELS = 200
_THINNEST = 1.2
"""Least spread of the hit voxels in every direction: points of one plane do not determine a projection."""
_GOOD, _BAD = 22.0, 45.0
"""Median errors in pixels below which a mapping fits a camera, and above which it does not."""
_IN_FRONT = 0.98
_OTHER_WIDTHS = (80, 160, 224, 256, 320, 424, 427, 480, 512, 561)
_OTHER_AXES = ("X, Y, height", "height, X, Y", "height, Y, X", "Y, X, height")
_MIRRORED = "left and right are mirrored between voxels and pixels, or X and Y exchanged"
_UPSIDE_DOWN = "the height axis points down, or is another axis"
_FLATTEST = 0.3
"""Least determinant of a projection, relative to its largest possible value, for its sign to be meaningful."""
_OPPOSITE = 0.3
"""Correlation of the wrong sign of columns and X, of rows and height; published frames have 0.39 up, -0.62 down."""
_PLACES = {"X": 0, "height": 1, "Y": 2}


@dataclasses.dataclass(frozen=True)
class ProjectionFit:
    """A projection fitted to a frame's mapping.

    Attributes:
        error: median distance in pixels between where a voxel is seen and the pixel that the mapping has.
        is_decided: the projection has depth, without which left and right cannot be told apart.
        is_mirrored: left and right are exchanged between voxels and pixels.
        is_upside_down: the height index grows downwards in the image.
    """

    error: float
    is_decided: bool
    is_mirrored: bool
    is_upside_down: bool

    @property
    def is_good(self) -> bool:
        return self.error <= _GOOD


def judge_mapping(mapping: NDArray[np.integer]) -> tuple[str, ...]:
    """What is wrong with the convention of a mapping [X, H, Y]; empty if nothing is, or it cannot be judged."""
    hits = np.argwhere(mapping != UNMAPPED)
    pixels = mapping[mapping != UNMAPPED].astype(np.int64)
    if len(hits) < _FEWEST_VOXELS:
        return ()
    fit = fit_projection(hits, pixels, width=IMAGE_SHAPE[1])
    if fit is not None and fit.is_good and fit.is_decided:
        found = [_MIRRORED] if fit.is_mirrored else []
        return (*found, _UPSIDE_DOWN) if fit.is_upside_down else tuple(found)
    if fit is not None and fit.error >= _BAD:
        other = _other_convention(mapping, hits, pixels)
        if other:
            return (other,)
    # Without a projection the directions still show: columns grow with X, and rows fall with the height.
    column, row = pixels % IMAGE_SHAPE[1], pixels // IMAGE_SHAPE[1]
    found = [_MIRRORED] if _correlation(column, hits[:, 0]) < -_OPPOSITE else []
    return (*found, _UPSIDE_DOWN) if _correlation(row, hits[:, 1]) > _OPPOSITE else tuple(found)


def _other_convention(
    mapping: NDArray[np.integer], hits: NDArray[np.integer], pixels: NDArray[np.integer]
) -> str | None:
    """An image width or an order of axes with which a projection fits."""
    for width in _OTHER_WIDTHS:
        other = fit_projection(hits, pixels, width=width)
        if other is not None and other.error * IMAGE_SHAPE[1] / width <= _GOOD:
            return f"the mapping counts pixels of an image that is {width} wide instead of {IMAGE_SHAPE[1]}"
    flat = np.flatnonzero(mapping != UNMAPPED)
    for order in _OTHER_AXES:
        other = fit_projection(voxels_in_order(flat, mapping.shape, order), pixels, width=IMAGE_SHAPE[1])
        if other is not None and other.is_good:
            return f"the axes of the mapping are stored as ({order}) instead of (X, height, Y)"
    return None


def _correlation(one: NDArray[np.integer], other: NDArray[np.integer]) -> float:
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])


def fit_projection(voxels: NDArray[np.integer], pixels: NDArray[np.integer], *, width: int) -> ProjectionFit | None:
    """The projection that fits best (direct linear transformation); None if the voxels do not determine one.

    Args:
        voxels: [N, 3], indices (x, h, y).
        pixels: [N] ``row * width + column``.
        width: columns of the image.
    """
    if len(voxels) < _FEWEST_VOXELS:
        return None
    points = voxels.astype(np.float64)
    spread = np.sqrt(np.maximum(np.linalg.eigvalsh(np.cov(points.T)), 0))
    if spread[0] < _THINNEST:
        return None
    points = (points - points.mean(axis=0)) / spread[-1]
    points = np.concatenate([points, np.ones((len(points), 1))], axis=1)
    half = width / 2
    u, v = (pixels % width) / half - 1, (pixels // width) / half - 0.75
    zeros = np.zeros_like(points)
    rows = np.concatenate(
        [
            np.concatenate([points, zeros, -u[:, None] * points], axis=1),
            np.concatenate([zeros, points, -v[:, None] * points], axis=1),
        ]
    )
    projection = np.linalg.eigh(rows.T @ rows)[1][:, 0].reshape(3, 4)
    depth = points @ projection[2]
    if np.median(depth) < 0:
        projection, depth = -projection, -depth
    is_in_front = depth > 1e-9
    if is_in_front.mean() < _IN_FRONT:
        return ProjectionFit(np.inf, is_decided=False, is_mirrored=False, is_upside_down=False)
    seen = (points @ projection[:2].T)[is_in_front] / depth[is_in_front, None]
    error = float(np.median(np.hypot(seen[:, 0] - u[is_in_front], seen[:, 1] - v[is_in_front]))) * half
    # In axes (X, height, Y) a camera's (right, down, forward) is left-handed.
    volume = float(np.linalg.det(projection[:, :3]) / np.prod(np.linalg.norm(projection[:, :3], axis=1)))
    middle = np.array([0.0, 0.0, 0.0, 1.0])
    down = projection[1, 1] * (middle @ projection[2]) - projection[2, 1] * (middle @ projection[1])
    return ProjectionFit(
        error, is_decided=abs(volume) > _FLATTEST, is_mirrored=volume > 0, is_upside_down=bool(down > 0)
    )


def voxels_in_order(flat: NDArray[np.integer], shape: tuple[int, ...], order: str) -> NDArray[np.int64]:
    """[N, 3] (x, h, y) of flat indices of an array whose axes have another order, such as ``X, Y, height``."""
    axes = axes_in_order(order)
    indices = np.stack(np.unravel_index(flat, [shape[axis] for axis in axes]), axis=1)
    voxels = np.empty_like(indices)
    voxels[:, axes] = indices
    return voxels


def axes_in_order(order: str) -> list[int]:
    """Axes of [X, height, Y] in an order such as ``X, Y, height``: 0, 2, 1."""
    return [_PLACES[name] for name in order.split(", ")]
