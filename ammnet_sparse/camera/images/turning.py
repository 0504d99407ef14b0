"""The images of one moment as arrays: color, depth and intrinsics, and their rotation upright."""

import dataclasses
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.camera.images.resizing import (
    CameraImages,
    are_alike,
    off_center,
    owner_of_intrinsics,
    to_network_images,
)
from ammnet_sparse.data.volumes.camera import Camera
from ammnet_sparse.files.errors import DataError

TURNS = (0, 90, 180, 270)
"""Degrees clockwise by which images can be rotated."""


Kind = TypeVar("Kind", bound=np.generic)


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """Color and depth of one moment, of any size.

    Attributes:
        color: [rows, columns, 3] uint8 RGB; None if there is only depth.
        depth: [rows, columns] float32, meters along the optical axis, 0 where missing; registered to the color image.
        camera: intrinsics of the depth image or of the color image: of the one whose center is closer to (cx, cy).
        color_camera: the color image's own, if its proportions differ; then ``camera`` is the depth image's.
        label_map: [rows, columns] uint8, 0..13, of the whole color image; or None.
        intrinsics_size: (rows, columns) of the image that ``camera`` belongs to, where that is known.

    Raises:
        DataError: arrays of another shape or type.
    """

    color: NDArray[np.uint8] | None
    depth: NDArray[np.float32]
    camera: Camera
    color_camera: Camera | None = None
    label_map: NDArray[np.uint8] | None = None
    intrinsics_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        color = self.color
        if color is not None and (color.ndim != 3 or color.shape[2] != 3 or color.dtype != np.uint8):
            raise DataError(f"color: expected [rows, columns, 3] uint8, found {color.dtype} {list(color.shape)}")
        labels = self.label_map
        if labels is not None and (labels.ndim != 2 or labels.dtype != np.uint8 or not labels.size):
            raise DataError(f"label map: expected [rows, columns] uint8, found {labels.dtype} {list(labels.shape)}")
        if self.depth.ndim != 2 or self.depth.dtype.kind != "f":
            raise DataError(
                f"depth: expected [rows, columns] floats in meters, found {self.depth.dtype} {list(self.depth.shape)}; "
                "meters_from_values of camera/files/depth.py makes them of a sensor's numbers"
            )
        if not self.depth.size or (color is not None and not color.size):
            raise DataError(f"color and depth: expected pixels, found none in one, depth {list(self.depth.shape)}")
        with np.errstate(invalid="ignore"):
            usable = np.isfinite(self.depth) & (self.depth > 0)
        object.__setattr__(self, "depth", np.where(usable, self.depth, 0).astype(np.float32))

    def to_network_images(self) -> CameraImages:
        """The images at the network's size; errors as ``images.to_network_images``."""
        return to_network_images(
            self.color,
            self.depth,
            camera=self.camera,
            color_camera=self.color_camera,
            label_map=self.label_map,
            intrinsics_size=self.intrinsics_size,
        )


def turned_image(image: NDArray[Kind], degrees: int) -> NDArray[Kind]:
    """An image [rows, columns, ...] rotated clockwise by a multiple of 90 degrees."""
    return np.ascontiguousarray(np.rot90(image, -(degrees // 90)))


def turned_camera(
    camera: Camera,
    degrees: int,
    color_shape: tuple[int, ...],
    depth_shape: tuple[int, ...],
    *,
    known: tuple[int, int] | None = None,
) -> tuple[Camera, tuple[int, int]]:
    """The intrinsics of images that are rotated clockwise, and (rows, columns) of the rotated image.

    Args:
        camera: intrinsics of the images as stored, before the rotation.
        color_shape, depth_shape: of these images.
        known: as ``owner_of_intrinsics``.
    """
    (rows, columns), camera = owner_of_intrinsics(camera, color_shape, depth_shape, known=known)
    for _ in range(degrees // 90):
        # Pixel (u, v) of an image rotated clockwise by 90 degrees comes from (v, rows - 1 - u).
        camera = Camera(camera.fy, camera.fx, rows - 1 - camera.cy, camera.cx)
        rows, columns = columns, rows
    return camera, (rows, columns)


def turned_pose(pose: NDArray[np.float64], degrees: int) -> NDArray[np.float64]:
    """The pose [4, 4] of the camera whose images are rotated clockwise: its axes rotate, its position stays."""
    quarter = np.array([[0.0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    return np.asarray(pose @ np.linalg.matrix_power(quarter, degrees // 90), dtype=np.float64)


def lies_like(image_shape: tuple[int, ...], stored_shape: tuple[int, ...]) -> bool:
    """Whether an image has the orientation of the stored color image, judged by its longer side; a square one has."""
    if are_alike(image_shape, stored_shape):
        return True
    if are_alike(image_shape, (stored_shape[1], stored_shape[0])):
        return False
    is_tall, is_stored_tall = image_shape[0] > image_shape[1], stored_shape[0] > stored_shape[1]
    return is_tall == is_stored_tall or image_shape[0] == image_shape[1]


def belongs_to_turned(camera: Camera, shapes: list[tuple[int, ...]], *, known: tuple[int, int] | None = None) -> bool:
    """Whether intrinsics belong to the images rotated by 90 degrees, and not to the ones with these shapes."""
    if known is not None:
        return not any(are_alike(known, shape) for shape in shapes) and any(
            are_alike(known, (shape[1], shape[0])) for shape in shapes
        )
    as_stored = min(off_center(camera, shape) for shape in shapes)
    as_turned = min(off_center(camera, (shape[1], shape[0])) for shape in shapes)
    return as_stored > 0.06 and as_turned < 0.5 * as_stored
