"""Colour, depth, intrinsics and pose as a user's camera gives them, brought to the 480x640 images of the network.

The rule for other sizes: the whole image is scaled, keeping its proportions, until it just fits into 480x640, and put
into the middle; what stays free on two sides has no depth, label void and the mean colour. Nothing is cropped. The
intrinsics are scaled and shifted alike.
"""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ammnet_sparse.data.grid import IMAGE_SHAPE, NUM_LABEL_MAP_CLASSES
from ammnet_sparse.data.sets.files import DataError, missing_file
from ammnet_sparse.data.volumes.camera import Camera

DEPTH_SCALE = 1000.0
"""Units of a depth image a metre: millimetres."""
INVALID_DEPTH = (0, 65535)
"""Values of an integer depth image that mean: nothing measured."""
MEAN_COLOR = (124, 116, 104)
"""ImageNet's mean, which the network reads as 0: what padding looks like in training too."""
_PLAUSIBLE_DEPTH = (0.15, 20.0)
"""Metres of the median depth of a room."""
_SMOOTH = 0.03
"""Relative difference of neighbouring depths below which they are interpolated."""
_EXIF_ORIENTATION = 0x0112
_PICTURE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


@dataclasses.dataclass(frozen=True, eq=False)
class CameraImages:
    """What the network's images are made of.

    Attributes:
        image: [480, 640, 3] uint8 RGB.
        depth: [480, 640] float32, metres along the optical axis, 0 where missing.
        camera: intrinsics of these images.
        label_map: [480, 640] uint8, 0..13; or None.
    """

    image: NDArray[np.uint8]
    depth: NDArray[np.float32]
    camera: Camera
    label_map: NDArray[np.uint8] | None = None


def parse_intrinsics(text: str) -> Camera:
    """Intrinsics from ``fx,fy,cx,cy`` or the nine numbers of a 3x3 matrix, or from a text file with one of these.

    Raises:
        DataError: anything else.
    """
    try:
        numbers = _numbers(text)
    except ValueError:
        numbers = _read_numbers(Path(text), what="fx,fy,cx,cy or a 3x3 matrix")
    advice = "give fx,fy,cx,cy in pixels, or a text file with the 3x3 matrix of the camera"
    if numbers.size == 9:
        matrix = numbers.reshape(3, 3)
        below = matrix[[1, 2, 2], [0, 0, 1]]
        if np.abs(below).max() > 1e-6 or abs(matrix[2, 2] - 1) > 1e-6:
            raise DataError(
                f"intrinsics {text}: expected 0 below the diagonal and 1 at its end, found {matrix.tolist()}"
            )
        if abs(matrix[0, 1]) > 1e-3 * abs(matrix[0, 0]):
            raise DataError(f"intrinsics {text}: expected no skew, found {matrix[0, 1]:g}; rectify the images")
        numbers = matrix[[0, 1, 0, 1], [0, 1, 2, 2]]
    if numbers.size != 4:
        raise DataError(f"intrinsics {text}: expected 4 or 9 numbers, found {numbers.size}; {advice}")
    try:
        return Camera(*numbers.tolist())
    except ValueError as error:
        raise DataError(f"intrinsics {text}: {error}; {advice}") from error


def read_pose(path: Path) -> NDArray[np.float64]:
    """A 4x4 camera-to-world matrix from a text file; camera axes x right, y down, z forward, metres.

    Its rotation is made exact. Raises DataError for anything that is no rigid motion.
    """
    numbers = _read_numbers(path, what="a 4x4 camera-to-world matrix")
    if numbers.size not in (12, 16):
        raise DataError(f"{path}: expected a 4x4 camera-to-world matrix, found {numbers.size} numbers")
    pose = np.eye(4)
    pose[: numbers.size // 4] = numbers.reshape(-1, 4)
    is_finite = bool(np.isfinite(pose).all())
    left, scale, right = np.linalg.svd(pose[:3, :3] if is_finite else np.zeros((3, 3)))
    if np.abs(scale - 1).max() > 0.02 or np.linalg.det(pose[:3, :3]) < 0:
        raise DataError(
            f"{path}: expected a rotation in the upper left 3x3, found {pose[:3, :3].tolist()}; "
            "a lost camera is often written as infinity or zeros: leave such frames out"
        )
    if np.abs(pose[3] - (0, 0, 0, 1)).max() > 1e-6:
        raise DataError(f"{path}: expected the last row 0 0 0 1, found {pose[3].tolist()}; transpose the matrix")
    pose[:3, :3] = left @ right
    return pose


def read_depth(path: Path, *, scale: float = DEPTH_SCALE) -> NDArray[np.float32]:
    """Depth in metres, [rows, columns] float32, 0 where missing.

    Args:
        path: a png or tiff with one channel of 16 bits or more, or an npy array of two axes. Missing are 0, 65535
            in an image of 16 bits, negative and infinite values and NaN.
        scale: units a metre.

    Raises:
        DataError: unreadable, another form, or a median depth that no room has.
    """
    if not (np.isfinite(scale) and scale > 0):
        raise DataError(f"depth scale: expected units a metre above 0, found {scale}")
    values = _read_depth_values(path)
    metres = values.astype(np.float64)
    metres[~np.isfinite(metres) | (metres < 0)] = 0.0
    if values.dtype.kind in "iu":
        metres[np.isin(values, INVALID_DEPTH)] = 0.0
    metres /= scale
    valid = metres > 0
    if not valid.any():
        raise DataError(f"{path}: expected depth, found no valid pixel")
    median = float(np.median(metres[valid]))
    if not _PLAUSIBLE_DEPTH[0] <= median <= _PLAUSIBLE_DEPTH[1]:
        raise DataError(
            f"{path}: expected the depth of a room, found a median of {median:.3g} m at {scale:g} units a metre; "
            "correct the depth scale (millimetres: 1000, metres: 1, tenths of millimetres: 10000, TUM: 5000)"
        )
    return metres.astype(np.float32)


def read_color(path: Path) -> NDArray[np.uint8]:
    """An RGB image [rows, columns, 3] uint8 of any size.

    Raises:
        DataError: it cannot be read, or is stored lying on its side.
    """
    try:
        with Image.open(path) as picture:
            if picture.getexif().get(_EXIF_ORIENTATION, 1) != 1:
                raise DataError(
                    f"{path}: expected an image stored upright, found one that viewers turn (EXIF orientation); "
                    "save colour and depth upright, and give the intrinsics of the upright images"
                )
            return np.array(picture.convert("RGB"))
    except DataError:
        raise
    except FileNotFoundError as error:
        raise missing_file(path) from error
    except _PICTURE_ERRORS as error:
        raise DataError(f"{path}: expected a readable colour image, found {type(error).__name__}: {error}") from error


def read_own_label_map(path: Path) -> NDArray[np.uint8]:
    """A 2D label map [rows, columns] uint8 of any size, 0..13. Raises DataError for anything else."""
    try:
        with Image.open(path) as picture:
            values = np.array(picture)
    except FileNotFoundError as error:
        raise missing_file(path) from error
    except _PICTURE_ERRORS as error:
        raise DataError(f"{path}: expected a readable label map, found {type(error).__name__}: {error}") from error
    if values.ndim != 2 or values.dtype.kind not in "iub" or int(values.max()) >= NUM_LABEL_MAP_CLASSES:
        found = f"up to {values.max()}" if values.ndim == 2 else f"shape {list(values.shape)}"
        raise DataError(
            f"{path}: expected one channel of classes 0..{NUM_LABEL_MAP_CLASSES - 1} (0 void), found {found}"
        )
    return values.astype(np.uint8)


def to_network_images(
    image: NDArray[np.uint8],
    depth: NDArray[np.float32],
    *,
    camera: Camera,
    label_map: NDArray[np.uint8] | None = None,
) -> CameraImages:
    """Scales and pads the images of one view to 480x640 (the rule at the top of this module).

    Args:
        image: [rows, columns, 3] uint8; depth is registered to it: one view, if not one size.
        depth: [rows, columns] float32, metres; other than the image only in size, not in proportions.
        camera: intrinsics of the colour image or of the depth image: of the one whose middle (cx, cy) is near.
        label_map: [rows, columns] uint8, of the colour image; other than it only in size, not in proportions.

    Raises:
        DataError: images of different proportions, or a principal point far from the middle of either.
    """
    size = owner_of_intrinsics(camera, image.shape[:2], depth.shape[:2])
    if label_map is not None and not _are_alike(image.shape, label_map.shape):
        raise DataError(
            f"label map: expected the proportions of the colour image {image.shape[1]}x{image.shape[0]}, found "
            f"{label_map.shape[1]}x{label_map.shape[0]}; segment the whole image, without cropping or padding"
        )
    scale = min(IMAGE_SHAPE[0] / size[0], IMAGE_SHAPE[1] / size[1])
    rows, columns = (max(1, min(limit, round(length * scale))) for limit, length in zip(IMAGE_SHAPE, size, strict=True))
    top, left = (IMAGE_SHAPE[0] - rows) // 2, (IMAGE_SHAPE[1] - columns) // 2
    scaled = _scaled(camera, rows / size[0], columns / size[1], top=top, left=left)
    framed = CameraImages(
        image=np.full((*IMAGE_SHAPE, 3), MEAN_COLOR, dtype=np.uint8),
        depth=np.zeros(IMAGE_SHAPE, dtype=np.float32),
        camera=scaled,
        label_map=None if label_map is None else np.zeros(IMAGE_SHAPE, dtype=np.uint8),
    )
    place = (slice(top, top + rows), slice(left, left + columns))
    picture = Image.fromarray(image).resize((columns, rows), Image.Resampling.LANCZOS)
    framed.image[place] = np.asarray(picture) if image.shape[:2] != (rows, columns) else image
    framed.depth[place] = _resampled_depth(depth, rows, columns)
    if framed.label_map is not None and label_map is not None:
        framed.label_map[place] = label_map[_nearest(label_map.shape[0], rows)][
            :, _nearest(label_map.shape[1], columns)
        ]
    return framed


def owner_of_intrinsics(camera: Camera, color_shape: tuple[int, ...], depth_shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of the image that the intrinsics belong to, by their principal point. Errors as above."""
    if not _are_alike(color_shape, depth_shape):
        raise DataError(
            f"colour and depth: expected one view in the same proportions, found {color_shape[1]}x{color_shape[0]} and "
            f"{depth_shape[1]}x{depth_shape[0]}; register the depth to the colour image, or crop them alike"
        )
    for rows, columns in ((depth_shape[0], depth_shape[1]), (color_shape[0], color_shape[1])):
        if abs(camera.cx / columns - 0.5) < 0.2 and abs(camera.cy / rows - 0.5) < 0.2:
            return rows, columns
    raise DataError(
        f"intrinsics: expected a principal point near the middle of the colour image {color_shape[1]}x{color_shape[0]} "
        f"or of the depth image {depth_shape[1]}x{depth_shape[0]}, found cx {camera.cx:g}, cy {camera.cy:g}; "
        "give those of one of these images, in pixels"
    )


def _are_alike(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether images of these (rows, columns) have the same proportions, but for rounded sizes."""
    return abs((one[1] / one[0]) / (other[1] / other[0]) - 1) <= 0.02


def _scaled(camera: Camera, scale_y: float, scale_x: float, *, top: int, left: int) -> Camera:
    # Whole coordinates are the middles of pixels, so it is the edges at -0.5 that stay in place.
    return Camera(
        camera.fx * scale_x,
        camera.fy * scale_y,
        (camera.cx + 0.5) * scale_x - 0.5 + left,
        (camera.cy + 0.5) * scale_y - 0.5 + top,
    )


def _nearest(size: int, new_size: int) -> NDArray[np.int64]:
    """The source pixel whose area holds the middle of each new one."""
    return np.minimum(((np.arange(new_size) + 0.5) * size / new_size).astype(np.int64), size - 1)


def _resampled_depth(depth: NDArray[np.float32], rows: int, columns: int) -> NDArray[np.float32]:
    """Depth of another size: the nearest pixel; on the way up interpolated where the surface is smooth.

    Never across an edge: a mixed depth is a point in the air between two surfaces.
    """
    nearest = depth[_nearest(depth.shape[0], rows)][:, _nearest(depth.shape[1], columns)]
    if rows <= depth.shape[0] and columns <= depth.shape[1]:
        return nearest
    (top, bottom, down), (left, right, across) = (
        _neighbours(size, new_size) for size, new_size in zip(depth.shape, (rows, columns), strict=True)
    )
    corners = np.stack([depth[v][:, u] for v in (top, bottom) for u in (left, right)])
    is_smooth = (corners.min(axis=0) > 0) & (np.ptp(corners, axis=0) < _SMOOTH * corners.min(axis=0))
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = 1.0 / corners  # linear over a plane, unlike depth
        upper = inverse[0] * (1 - across) + inverse[1] * across
        lower = inverse[2] * (1 - across) + inverse[3] * across
        smooth = 1.0 / (upper * (1 - down)[:, None] + lower * down[:, None])
    return np.where(is_smooth, smooth, nearest).astype(np.float32)


def _neighbours(size: int, new_size: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """The source pixels before and after the middle of each new one, and its share of the way between them."""
    position = np.clip((np.arange(new_size) + 0.5) * size / new_size - 0.5, 0, size - 1)
    before = np.minimum(position.astype(np.int64), max(size - 2, 0))
    return before, np.minimum(before + 1, size - 1), position - before


def _read_depth_values(path: Path) -> NDArray[Any]:
    try:
        if path.suffix.lower() == ".npy":
            values: NDArray[Any] = np.load(path, allow_pickle=False)
        else:
            with Image.open(path) as picture:
                values = np.array(picture)
    except FileNotFoundError as error:
        raise missing_file(path) from error
    except _PICTURE_ERRORS as error:
        raise DataError(f"{path}: expected a readable depth image, found {type(error).__name__}: {error}") from error
    if values.ndim != 2 or values.dtype.kind not in "iuf" or values.dtype.itemsize < 2:
        raise DataError(
            f"{path}: expected a depth image with one channel of 16 bits, found {values.dtype} {list(values.shape)}; "
            "pictures of depth in colour or 8 bits do not hold the measurements"
        )
    return values


def _read_numbers(path: Path, *, what: str) -> NDArray[np.float64]:
    try:
        return _numbers(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: expected {what}, as numbers or as a text file of them, found no such file") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected {what}, as numbers or as a text file of them, found {error}") from error


def _numbers(text: str) -> NDArray[np.float64]:
    """Numbers between commas, semicolons, spaces, lines and brackets. Raises ValueError for anything else."""
    return np.array([float(part) for part in re.split(r"[\s,;\[\]]+", text.strip(" \t\r\n,;[]"))])
