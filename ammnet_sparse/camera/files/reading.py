"""Reads the files of a user's frame."""

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.camera.files.color import read_color
from ammnet_sparse.camera.files.depth import read_depth_with_notes
from ammnet_sparse.camera.files.frame_files import OwnFramePaths
from ammnet_sparse.camera.files.label_maps import read_own_label_map
from ammnet_sparse.camera.files.poses import read_trajectory
from ammnet_sparse.camera.geometry.placement import Placement
from ammnet_sparse.camera.images.stored import CameraSettings, StoredFrame, UprightFrame, upright_frame
from ammnet_sparse.camera.own_frames import OwnFrame


def read_own_frame(paths: OwnFramePaths, *, settings: CameraSettings, previous: Placement | None = None) -> OwnFrame:
    """Reads the files of a frame and makes the frame.

    Args:
        paths: the files.
        settings: what is known of the camera.
        previous: the placement of the previous frame of the same camera; as ``place_camera``.

    Raises:
        DataError: a file that cannot be used, or images that contradict each other.
    """
    return read_upright_frame(paths, settings=settings).placed(settings, name=paths.name, previous=previous)


def read_pose(paths: OwnFramePaths) -> NDArray[np.float64] | None:
    """[4, 4] camera to world of a frame; None if no pose belongs to it. Raises DataError as ``read_trajectory``."""
    if paths.pose is None:
        return None
    return read_trajectory(paths.pose).pose_of(paths.time, index=paths.index, count=paths.count)


def read_upright_frame(paths: OwnFramePaths, *, settings: CameraSettings) -> UprightFrame:
    """Reads the files of a frame and rotates them upright.

    Raises:
        DataError: as ``read_own_frame``.
    """
    depth, notes = read_depth_with_notes(
        paths.depth,
        scale=settings.depth_scale,
        encoding=settings.depth_encoding,
        usual_scale=settings.intrinsics.depth_scale,
    )
    label_map = None
    if paths.label_map is not None:
        label_map, more = read_own_label_map(paths.label_map, classes=settings.label_map_classes)
        notes += more
    color, exif_turn = (None, 0) if paths.color is None else read_color(paths.color)
    frame = upright_frame(StoredFrame(color, depth, label_map, read_pose(paths), exif_turn), settings)
    return frame._replace(notes=(*notes, *frame.notes))
