"""The images of a frame in one camera's geometry: turned upright, scaled and padded to 480x640.

The rule for other sizes: the whole image is scaled, keeping its proportions, until it just fits into 480x640, and put
into the middle; the margins on two sides have no depth, label void and the mean color. Nothing is cropped. The
intrinsics are scaled and shifted alike.
"""

import dataclasses
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ammnet_sparse.camera.files.depth import meters_from_values
from ammnet_sparse.camera.files.intrinsics import Intrinsics
from ammnet_sparse.camera.files.label_maps import label_map_from_values
from ammnet_sparse.camera.files.poses import PoseConvention
from ammnet_sparse.camera.files.stored import StoredImages
from ammnet_sparse.camera.repairs import without_outliers, without_pattern
from ammnet_sparse.camera.resizing import (
    MEAN_COLOR,
    are_alike,
    as_seen_by_depth,
    off_center,
    owner_of_intrinsics,
    resized_depth,
    resized_label_map,
    scaled_camera,
)
from ammnet_sparse.camera.settings import CameraSettings
from ammnet_sparse.data.grid import IMAGE_SHAPE
from ammnet_sparse.data.volumes.camera import Camera
from ammnet_sparse.files.errors import DataError

_OTHER_AXES = np.diag([1.0, -1.0, -1.0, 1.0])
"""Camera coordinates with y up and z back to those with y down and z forward, and back."""
Kind = TypeVar("Kind", bound=np.generic)


@dataclasses.dataclass(frozen=True, eq=False)
class CameraImages:
    """The images of one frame as an upright camera sees them, at the network's size.

    Attributes:
        image: [480, 640, 3] uint8 RGB, or None.
        depth: [480, 640] float32, meters along the optical axis, 0 where missing.
        camera: intrinsics of these images.
        label_map: [480, 640] uint8, 0..13; or None.
        pose: [4, 4] of this camera to the user's world, or None.
        convention: of the camera axes that ``pose`` was read with.
        other_pose: the same pose read with the other convention, if none was given.
        is_told_upright: the user or EXIF gave the orientation.
        notes: what was detected in the files, for people.
    """

    image: NDArray[np.uint8] | None
    depth: NDArray[np.float32]
    camera: Camera
    label_map: NDArray[np.uint8] | None = None
    pose: NDArray[np.float64] | None = None
    convention: PoseConvention = "opencv"
    other_pose: NDArray[np.float64] | None = None
    is_told_upright: bool = False
    notes: tuple[str, ...] = ()


def camera_images(stored: StoredImages, settings: CameraSettings) -> CameraImages:
    """Depth in meters and the classes that networks read, turned as the settings say, or else EXIF, and resized.

    With EXIF, depth or label map may be upright already, as their proportions show; if the user gives the rotation,
    everything is rotated. Intrinsics of the upright images stay as they are, and so does the pose.

    Raises:
        DataError: arrays of another shape or type, or images that contradict each other or the intrinsics.
    """
    color = stored.color
    depth, label_map, notes = _meters_and_classes(stored, settings)
    # Without a color image, the label map or else the depth image shows how large it would be.
    color_shape = next(image.shape[:2] for image in (color, label_map, depth) if image is not None)
    intrinsics = settings.intrinsics.fitting([depth.shape, color_shape])
    color_intrinsics = settings.color_intrinsics
    if color is None and label_map is None:  # nothing of the color camera is there
        color_intrinsics = None
    if color_intrinsics is not None:
        color_intrinsics = color_intrinsics.fitting([color_shape])
    notes += intrinsics.notes
    if settings.rotate is None and stored.exif_turn:
        notes.append(
            f"color: EXIF turns it by {stored.exif_turn} degrees clockwise, and everything stored in the same "
            "orientation with it (`rotate=0` leaves the images as they are stored)"
        )
    pose, other = stored.pose, None
    convention = settings.pose_convention or stored.pose_convention or "opencv"
    if pose is not None:
        pose, other = (pose, pose @ _OTHER_AXES) if convention == "opencv" else (pose @ _OTHER_AXES, pose)
    is_told = settings.rotate is not None
    degrees = stored.exif_turn if settings.rotate is None else settings.rotate
    depth_turn = degrees if is_told or _lies_like(depth.shape, color_shape) else 0
    camera, size = intrinsics.camera, intrinsics.size
    # With intrinsics of its own the color image is another camera's, and these belong to the depth image.
    shape = depth.shape if color_intrinsics is not None else color_shape
    if depth_turn and not _belongs_to_turned(camera, [depth.shape, shape], known=size):
        camera, size = turned_camera(camera, degrees, shape, depth.shape, known=size)
        pose, other = (None if one is None else turned_pose(one, degrees) for one in (pose, other))
    color_camera = None
    if color_intrinsics is not None:
        color_camera = _turned_color_camera(color_intrinsics, degrees, color_shape)
    if label_map is not None and (is_told or _lies_like(label_map.shape, color_shape)):
        label_map = turned_image(label_map, degrees)
    images = to_network_images(
        None if color is None else turned_image(color, degrees),
        turned_image(depth, depth_turn),
        camera=camera,
        color_camera=color_camera,
        label_map=label_map,
        intrinsics_size=size,
    )
    is_told_upright = is_told or stored.exif_turn != 0
    return dataclasses.replace(
        images,
        pose=pose,
        convention=convention,
        other_pose=None if settings.pose_convention is not None else other,
        is_told_upright=is_told_upright,
        notes=(*notes, *images.notes),
    )


def _meters_and_classes(
    stored: StoredImages, settings: CameraSettings
) -> tuple[NDArray[np.float32], NDArray[np.uint8] | None, list[str]]:
    """Depth in meters, the label map in the classes that networks read, and notes; the color image is checked."""
    color, files = stored.color, stored.files
    if color is not None and (color.ndim != 3 or color.shape[2] != 3 or color.dtype != np.uint8 or not color.size):
        raise DataError(f"color: expected [rows, columns, 3] uint8, found {color.dtype} {list(color.shape)}")
    depth, notes = meters_from_values(
        stored.depth,
        name="depth" if files is None else str(files.depth),
        scale=settings.depth_scale,
        encoding=settings.depth_encoding,
        usual_scale=settings.intrinsics.depth_scale,
    )
    if stored.label_map is None:
        return depth, None, notes
    name = "label map" if files is None else str(files.label_map)
    label_map, more = label_map_from_values(stored.label_map, name=name, classes=settings.label_map_classes)
    return depth, label_map, [*notes, *more]


def to_network_images(
    image: NDArray[np.uint8] | None,
    depth: NDArray[np.float32],
    *,
    camera: Camera,
    color_camera: Camera | None = None,
    label_map: NDArray[np.uint8] | None = None,
    intrinsics_size: tuple[int, int] | None = None,
) -> CameraImages:
    """Scales and pads the images of one view to 480x640 (the rule at the top of this module), and repairs the depth.

    Args:
        image: [rows, columns, 3] uint8; depth is registered to it: the same view in any size. None: depth alone.
        depth: [rows, columns] float32, meters; without ``color_camera`` it may differ from the image in size, not in
            proportions.
        camera: intrinsics of the color image or of the depth image: of the one whose middle (cx, cy) is nearer.
        color_camera: intrinsics of the color image, if it has its own: same position and direction, another field
            of view. Then ``camera`` is the depth image's, and color and label map are resampled to its view.
        label_map: [rows, columns] uint8, of the color image; it may differ from that in size, not in proportions.
        intrinsics_size: (rows, columns) of the image that ``camera`` belongs to, where that is known.

    Raises:
        DataError: images of different proportions, or a principal point far from the middle of either.
    """
    shape = next(one.shape[:2] for one in (image, label_map, depth) if one is not None)
    if label_map is not None and not are_alike(shape, label_map.shape):
        raise DataError(
            f"label map: expected the proportions of the color image {shape[1]}x{shape[0]}, found "
            f"{label_map.shape[1]}x{label_map.shape[0]}; segment the whole image, without cropping or padding"
        )
    if color_camera is None:
        size, camera = owner_of_intrinsics(camera, shape, depth.shape, known=intrinsics_size)
    else:
        size, camera = owner_of_intrinsics(camera, depth.shape, depth.shape, known=intrinsics_size)
        image, label_map = as_seen_by_depth(
            image, label_map, color_camera, camera=camera, color_shape=shape, shape=size
        )
    scale = min(IMAGE_SHAPE[0] / size[0], IMAGE_SHAPE[1] / size[1])
    rows, columns = (max(1, min(limit, round(length * scale))) for limit, length in zip(IMAGE_SHAPE, size, strict=True))
    top, left = (IMAGE_SHAPE[0] - rows) // 2, (IMAGE_SHAPE[1] - columns) // 2
    place = (slice(top, top + rows), slice(left, left + columns))
    framed_image = framed_label_map = None
    if image is not None:
        framed_image = np.full((*IMAGE_SHAPE, 3), MEAN_COLOR, dtype=np.uint8)
        picture = Image.fromarray(image).resize((columns, rows), Image.Resampling.LANCZOS)
        framed_image[place] = np.asarray(picture) if image.shape[:2] != (rows, columns) else image
    framed_depth = np.zeros(IMAGE_SHAPE, dtype=np.float32)
    # Between the holes of a pattern an outlier has no neighbors, so it is looked for again without them.
    depth, share_of_outliers = without_outliers(depth)
    depth = resized_depth(depth, rows, columns)
    if not share_of_outliers:
        depth, share_of_outliers = without_outliers(depth)
    framed_depth[place], share_filled = without_pattern(depth)
    if share_filled and not share_of_outliers:
        framed_depth, share_of_outliers = without_outliers(framed_depth)
    notes = []
    if share_of_outliers:
        notes.append(f"depth: {share_of_outliers:.1%} of it are isolated outliers, replaced by the depth around them")
    if share_filled:
        notes.append(
            f"depth: has small holes everywhere; they are filled from both sides ({share_filled:.0%} of the image)"
        )
    if label_map is not None:
        framed_label_map = np.zeros(IMAGE_SHAPE, dtype=np.uint8)
        framed_label_map[place] = resized_label_map(label_map, rows, columns)
    framed_camera = scaled_camera(camera, rows / size[0], columns / size[1], top=top, left=left)
    return CameraImages(framed_image, framed_depth, framed_camera, framed_label_map, notes=tuple(notes))


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


def _lies_like(image_shape: tuple[int, ...], stored_shape: tuple[int, ...]) -> bool:
    """Whether an image has the orientation of the stored color image, judged by its longer side; a square one has."""
    if are_alike(image_shape, stored_shape):
        return True
    if are_alike(image_shape, (stored_shape[1], stored_shape[0])):
        return False
    is_tall, is_stored_tall = image_shape[0] > image_shape[1], stored_shape[0] > stored_shape[1]
    return is_tall == is_stored_tall or image_shape[0] == image_shape[1]


def _belongs_to_turned(camera: Camera, shapes: list[tuple[int, ...]], *, known: tuple[int, int] | None = None) -> bool:
    """Whether intrinsics belong to the images rotated by 90 degrees, and not to the ones with these shapes."""
    if known is not None:
        return not any(are_alike(known, shape) for shape in shapes) and any(
            are_alike(known, (shape[1], shape[0])) for shape in shapes
        )
    as_stored = min(off_center(camera, shape) for shape in shapes)
    as_turned = min(off_center(camera, (shape[1], shape[0])) for shape in shapes)
    return as_stored > 0.06 and as_turned < 0.5 * as_stored


def _turned_color_camera(intrinsics: Intrinsics, degrees: int, shape: tuple[int, ...]) -> Camera:
    """The color image's own intrinsics in its pixels, after its rotation; ``shape`` is the stored image's."""
    camera, size = intrinsics.camera, intrinsics.size
    if degrees and _belongs_to_turned(camera, [shape], known=size):
        return owner_of_intrinsics(camera, shape[::-1], shape[::-1], known=size)[1]
    return turned_camera(camera, degrees, shape, shape, known=size)[0]
