"""Intrinsics, depth, label maps and color of an image at another size."""

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ammnet_sparse.data.volumes.camera import Camera
from ammnet_sparse.files.errors import DataError

MEAN_COLOR = (124, 116, 104)
"""ImageNet's mean, which the network reads as 0: the color of padding in training too."""
_SMOOTH = 0.03
"""Relative difference of neighboring depths below which they are interpolated."""
_MAX_OFF_CENTER = 0.2
"""Share of an image's sides by which the principal point may be off its middle."""


def owner_of_intrinsics(
    camera: Camera,
    color_shape: tuple[int, ...],
    depth_shape: tuple[int, ...],
    *,
    known: tuple[int, int] | None = None,
) -> tuple[tuple[int, int], Camera]:
    """Rows and columns of the image that the intrinsics belong to, and the intrinsics in its pixels.

    It is the one whose middle the principal point is nearest to. ``known`` is the size that the intrinsics were given
    for; if no image has it, they are scaled to the depth image.

    Raises:
        DataError: images of different proportions, or a principal point far from the middle of either.
    """
    if not are_alike(color_shape, depth_shape):
        raise DataError(
            f"color and depth: expected one view in the same proportions, found {color_shape[1]}x{color_shape[0]} and "
            f"{depth_shape[1]}x{depth_shape[0]}; register the depth to the color image, crop them alike, or give both "
            "cameras, `intrinsics` of the depth image and `color_intrinsics`"
        )
    shapes = [(depth_shape[0], depth_shape[1]), (color_shape[0], color_shape[1])]
    if known is not None and known not in shapes:
        if not are_alike(known, depth_shape):
            raise DataError(
                f"intrinsics: expected those of {_sizes(color_shape, depth_shape)}, found those of "
                f"{known[1]}x{known[0]} by what their file says; give them in pixels of the image"
            )
        scaled = scaled_camera(camera, depth_shape[0] / known[0], depth_shape[1] / known[1])
        return shapes[0], scaled
    nearest = known if known is not None else min(shapes, key=lambda shape: off_center(camera, shape))
    off = off_center(camera, nearest)
    if off > _MAX_OFF_CENTER:
        raise DataError(
            f"intrinsics: expected a principal point near the center of {_sizes(color_shape, depth_shape)}, found cx "
            f"{camera.cx:g}, cy {camera.cy:g}; give them in pixels of the image"
        )
    if off > 0.06 and min(off_center(camera, shape[::-1]) for shape in shapes) < 0.5 * off:
        raise DataError(
            f"intrinsics: cx {camera.cx:g}, cy {camera.cy:g} is the center of an image of "
            f"{nearest[0]}x{nearest[1]}, but the images are {nearest[1]}x{nearest[0]}: they lie on their side, or the "
            "intrinsics do; exchange fx with fy and cx with cy, or turn the images with `rotate`"
        )
    return nearest, camera


def _sizes(color_shape: tuple[int, ...], depth_shape: tuple[int, ...]) -> str:
    """The images in words; there may be no color image, which then has the size of the depth image."""
    if color_shape[:2] == depth_shape[:2]:
        return f"an image of {depth_shape[1]}x{depth_shape[0]}"
    return f"the color image {color_shape[1]}x{color_shape[0]} or of the depth image {depth_shape[1]}x{depth_shape[0]}"


def off_center(camera: Camera, shape: tuple[int, ...]) -> float:
    """How far the principal point is from the middle of an image of (rows, columns), as a share of its sides."""
    return max(abs((camera.cx + 0.5) / shape[1] - 0.5), abs((camera.cy + 0.5) / shape[0] - 0.5))


def are_alike(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether images of these (rows, columns) have the same proportions, but for rounded sizes."""
    return abs((one[1] / one[0]) / (other[1] / other[0]) - 1) <= 0.02


def scaled_camera(camera: Camera, scale_y: float, scale_x: float, *, top: int = 0, left: int = 0) -> Camera:
    """The intrinsics of an image that is scaled and then padded by ``top`` rows and ``left`` columns."""
    # Whole coordinates are the middles of pixels, so it is the edges at -0.5 that stay in place.
    return Camera(
        camera.fx * scale_x,
        camera.fy * scale_y,
        (camera.cx + 0.5) * scale_x - 0.5 + left,
        (camera.cy + 0.5) * scale_y - 0.5 + top,
    )


def as_seen_by_depth(
    image: NDArray[np.uint8] | None,
    label_map: NDArray[np.uint8] | None,
    color_camera: Camera,
    *,
    camera: Camera,
    color_shape: tuple[int, ...],
    shape: tuple[int, int],
) -> tuple[NDArray[np.uint8] | None, NDArray[np.uint8] | None]:
    """Color and label map as the depth image's camera would see them, at a size that keeps the color's detail.

    Both have the same position and direction, so a pixel's position in the other image does not depend on its depth.
    """
    _, color_camera = owner_of_intrinsics(color_camera, color_shape, color_shape)
    detail = max(1, round(min(color_camera.fx / camera.fx, color_camera.fy / camera.fy)))
    rows, columns = shape[0] * detail, shape[1] * detail
    fine = scaled_camera(camera, detail, detail)
    u = (np.arange(columns) - fine.cx) / fine.fx * color_camera.fx + color_camera.cx
    v = (np.arange(rows) - fine.cy) / fine.fy * color_camera.fy + color_camera.cy
    if image is not None:
        # Pillow's coordinates have the middles of pixels at halves, for both images.
        left, top, right, bottom = u[0] + 0.5, v[0] + 0.5, u[-1] + 0.5, v[-1] + 0.5
        step_x, step_y = (right - left) / max(columns - 1, 1), (bottom - top) / max(rows - 1, 1)
        affine = (step_x, 0.0, left - 0.5 * step_x, 0.0, step_y, top - 0.5 * step_y)
        image = np.asarray(
            Image.fromarray(image).transform(
                (columns, rows), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR, fillcolor=MEAN_COLOR
            )
        )
    if label_map is None:
        return image, None
    row = np.floor((v + 0.5) * label_map.shape[0] / color_shape[0]).astype(np.int64)
    column = np.floor((u + 0.5) * label_map.shape[1] / color_shape[1]).astype(np.int64)
    inside = np.ix_((row >= 0) & (row < label_map.shape[0]), (column >= 0) & (column < label_map.shape[1]))
    seen = np.zeros((rows, columns), dtype=np.uint8)
    seen[inside] = label_map[row.clip(0, label_map.shape[0] - 1)][:, column.clip(0, label_map.shape[1] - 1)][inside]
    return image, seen


def _nearest(size: int, new_size: int) -> NDArray[np.int64]:
    """The source pixel whose area holds the middle of each new one."""
    return np.minimum(((np.arange(new_size) + 0.5) * size / new_size).astype(np.int64), size - 1)


def resized_label_map(label_map: NDArray[np.uint8], rows: int, columns: int) -> NDArray[np.uint8]:
    """A label map of another size: the nearest pixel."""
    return label_map[_nearest(label_map.shape[0], rows)][:, _nearest(label_map.shape[1], columns)]


def resized_depth(depth: NDArray[np.float32], rows: int, columns: int) -> NDArray[np.float32]:
    """Depth of another size: the nearest pixel; on the way up interpolated where the surface is smooth.

    Never across an edge: a mixed depth is a point in the air between two surfaces. On the way down a pixel without
    depth gives way to the nearest one with depth of those that the new pixel covers.
    """
    row, column = _nearest(depth.shape[0], rows), _nearest(depth.shape[1], columns)
    nearest = depth[row][:, column]
    if rows <= depth.shape[0] and columns <= depth.shape[1]:
        return _nearest_valid(depth, nearest, row, column)
    (top, bottom, down), (left, right, across) = (
        _neighbors(size, new_size) for size, new_size in zip(depth.shape, (rows, columns), strict=True)
    )
    corners = np.stack([depth[v][:, u] for v in (top, bottom) for u in (left, right)])
    is_smooth = (corners.min(axis=0) > 0) & (np.ptp(corners, axis=0) < _SMOOTH * corners.min(axis=0))
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = 1.0 / corners  # linear over a plane, unlike depth
        upper = inverse[0] * (1 - across) + inverse[1] * across
        lower = inverse[2] * (1 - across) + inverse[3] * across
        smooth = 1.0 / (upper * (1 - down)[:, None] + lower * down[:, None])
    return np.where(is_smooth, smooth, nearest).astype(np.float32)


def _nearest_valid(
    depth: NDArray[np.float32], nearest: NDArray[np.float32], row: NDArray[np.int64], column: NDArray[np.int64]
) -> NDArray[np.float32]:
    """``nearest``, depth at ``row`` and ``column``, with its holes filled from the blocks of the new pixels."""
    covered = [
        _covered(size, new_size, places)
        for size, new_size, places in zip(depth.shape, nearest.shape, (row, column), strict=True)
    ]
    offsets = [(down, across) for down in covered[0] for across in covered[1] if (down, across) != (0, 0)]
    for down, across in sorted(offsets, key=lambda offset: offset[0] ** 2 + offset[1] ** 2):
        holes = np.nonzero((nearest == 0) & covered[0][down][:, None] & covered[1][across])
        nearest[holes] = depth[row[holes[0]] + down, column[holes[1]] + across]
    return nearest


def _covered(size: int, new_size: int, places: NDArray[np.int64]) -> dict[int, NDArray[np.bool_]]:
    """By the offset from the nearest source pixel: which new pixels cover the source pixel at that offset."""
    ratio, index = size / new_size, np.arange(new_size)
    first, last = np.floor(index * ratio), np.minimum(np.ceil((index + 1) * ratio), size) - 1
    reach = math.ceil(ratio)
    near = {step: (places + step >= first) & (places + step <= last) for step in range(-reach, reach + 1)}
    return {step: mask for step, mask in near.items() if mask.any()}


def _neighbors(size: int, new_size: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """The source pixels before and after the middle of each new one, and its share of the way between them."""
    position = np.clip((np.arange(new_size) + 0.5) * size / new_size - 0.5, 0, size - 1)
    before = np.minimum(position.astype(np.int64), max(size - 2, 0))
    return before, np.minimum(before + 1, size - 1), position - before
