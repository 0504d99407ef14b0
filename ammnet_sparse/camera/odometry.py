"""Poses of a moving camera whose program gives none: RGB-D odometry of Open3D, frame after frame."""

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.camera.files.poses import Pose
from ammnet_sparse.camera.files.stored import StoredImages
from ammnet_sparse.camera.geometry.surface import angle_between
from ammnet_sparse.camera.images import CameraImages, camera_images
from ammnet_sparse.camera.settings import CameraSettings
from ammnet_sparse.data.volumes.camera import pixels_of
from ammnet_sparse.files.errors import DataError

_FARTHEST = 5.0
"""Meters of depth that is used; beyond it depth cameras are too noisy."""
_MOST_DIFFERENT = 0.07
"""Meters of depth between the two pixels of a pair in the odometry."""
_STEP = 8
"""Every so many rows and columns are compared to judge a motion."""
_SAME_DEPTH, _SAME_SHARE = 0.05, 0.02
"""Meters, and share of the depth, by which two frames of one place may differ."""
_LEAST_OVERLAP, _LEAST_AGREEMENT = 0.25, 0.7
"""Shares of a frame's pixels that must be in sight of the other frame, and of those that must have its depth."""
_KEY_MOTION, _KEY_TURN = 0.2, 10.0
"""Meters and degrees from a key frame after which the next one is taken: few of them keep the drift small."""
_DIAGONAL = np.array([1.0, 1.0, 1.0]) / np.sqrt(3.0)
_ACROSS = np.array([-1.0, 1.0, 0.0]) / np.sqrt(2.0)
_FIRST_POSE = np.eye(4)
"""Of the first camera. An axis near the vertical would be taken for it, but those of this world mean nothing: so the
camera's upright is the diagonal, and it looks towards Z, so that looking down brings no axis nearer."""
_FIRST_POSE[:3, :3] = np.stack([_ACROSS, -_DIAGONAL, np.cross(_ACROSS, -_DIAGONAL)], axis=1)


@dataclasses.dataclass(frozen=True, eq=False)
class _View:
    """A frame and its pose in the world of its part; ``rgbd`` is Open3D's."""

    images: CameraImages
    rgbd: Any
    pose: Pose


class Odometry:
    """Finds the pose of every frame from the frames before it. It needs color and the extra ``odometry``.

    A part of the sequence, with a world of its own, begins at the first frame and wherever tracking is lost: where the
    motion that is found does not bring the depth of both frames together.

    Args:
        settings: what is known about the camera.

    Raises:
        DataError: Open3D is not installed.
    """

    def __init__(self, settings: CameraSettings) -> None:
        self._settings = settings
        self._open3d = _open3d()
        self._known: tuple[_View, ...] = ()
        """The key frame, and the last one."""

    def add(self, stored: StoredImages) -> tuple[Pose, bool]:
        """The pose [4, 4] of the next frame, camera to the world of its part, and whether it begins a part.

        Raises:
            DataError: images that cannot be used; the next frame is compared with the one before.
        """
        if stored.color is None:
            raise DataError(f"frame {stored.name}: expected a color image, which odometry needs, found none")
        images = camera_images(dataclasses.replace(stored, pose=np.eye(4), pose_convention="opencv"), self._settings)
        rgbd = self._rgbd(images)
        found = (self._pose(images, rgbd, other, near=self._known[-1].pose) for other in self._known)
        pose = next((one for one in found if one is not None), None)
        last = _View(images, rgbd, _FIRST_POSE if pose is None else pose)
        is_key = pose is None or _is_far(pose, self._known[0].pose)
        self._known = (last if is_key else self._known[0], last)
        # Upright images are rotated ones; the pose is of the camera as it is stored.
        assert images.pose is not None
        return np.asarray(last.pose @ np.linalg.inv(images.pose), dtype=np.float64), pose is None

    def _rgbd(self, images: CameraImages) -> Any:
        geometry = self._open3d.geometry
        return geometry.RGBDImage.create_from_color_and_depth(
            geometry.Image(np.ascontiguousarray(images.image)),
            geometry.Image(images.depth),
            depth_scale=1.0,
            depth_trunc=_FARTHEST,
            convert_rgb_to_intensity=True,
        )

    def _pose(self, images: CameraImages, rgbd: Any, other: _View, *, near: Pose) -> Pose | None:
        """The pose by its motion from another frame, first assumed to be at ``near``; None if the depth contradicts."""
        odometry, camera = self._open3d.pipelines.odometry, images.camera
        rows, columns = images.depth.shape
        found, motion, _ = odometry.compute_rgbd_odometry(
            rgbd,
            other.rgbd,
            self._open3d.camera.PinholeCameraIntrinsic(columns, rows, camera.fx, camera.fy, camera.cx, camera.cy),
            np.linalg.inv(other.pose) @ near,
            odometry.RGBDOdometryJacobianFromHybridTerm(),
            odometry.OdometryOption(depth_diff_max=_MOST_DIFFERENT, depth_max=_FARTHEST),
        )
        motion = np.asarray(motion, dtype=np.float64)
        return other.pose @ motion if found and _agrees(images, other.images, motion) else None


def _is_far(pose: Pose, other: Pose) -> bool:
    meters = np.linalg.norm(pose[:3, 3] - other[:3, 3])
    return bool(meters > _KEY_MOTION) or angle_between(pose[:3, 2], other[:3, 2]) > _KEY_TURN


def _agrees(images: CameraImages, other: CameraImages, motion: NDArray[np.float64]) -> bool:
    """Whether both frames see the same surfaces; ``motion`` is [4, 4] from this camera to the other."""
    camera = images.camera
    rows, columns = (_STEP * index for index in np.nonzero(images.depth[::_STEP, ::_STEP]))
    z = images.depth[rows, columns].astype(np.float64)
    if not len(z):
        return False
    points = np.stack([(columns - camera.cx) * z / camera.fx, (rows - camera.cy) * z / camera.fy, z], axis=1)
    moved = points @ motion[:3, :3].T + motion[:3, 3]
    moved = moved[moved[:, 2] > 0.1]
    column, row = np.rint(pixels_of(moved, camera=other.camera)[:2]).astype(np.int64)
    is_inside = (row >= 0) & (row < other.depth.shape[0]) & (column >= 0) & (column < other.depth.shape[1])
    expected, seen = moved[is_inside, 2], other.depth[row[is_inside], column[is_inside]]
    is_seen = seen > 0
    if is_seen.sum() < _LEAST_OVERLAP * len(z):
        return False
    difference = np.abs(expected - seen)[is_seen]
    return bool((difference < _SAME_DEPTH + _SAME_SHARE * expected[is_seen]).mean() >= _LEAST_AGREEMENT)


def _open3d() -> Any:
    try:
        import open3d
    except ModuleNotFoundError as error:
        raise DataError(
            f"odometry: expected the package open3d, found no {error.name}; pip install ammnet-sparse[odometry]"
        ) from error
    except ImportError as error:  # it needs libraries that a server may lack
        raise DataError(f"odometry: expected the package open3d, found one that cannot be loaded ({error})") from error
    return open3d
