"""Odometry: poses that follow from the motion between frames, and where tracking is lost. Open3D itself is faked."""

import sys
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
from numpy.typing import NDArray

from ammnet_sparse.camera.files.stored import StoredImages
from ammnet_sparse.camera.odometry import Odometry
from ammnet_sparse.camera.settings import CameraSettings
from ammnet_sparse.data.synthetic.raycast import camera_pose
from ammnet_sparse.files.errors import DataError
from tests.camera.own_views import settings_of
from tests.completion import room_depth

PITCH = 20.0
HEIGHTS = (1.4, 1.45, 1.5)


def pose(height: float) -> NDArray[np.float64]:
    return camera_pose(height, yaw=0.0, pitch=-np.radians(PITCH), roll=0.0)


def frame(number: int, *, wall: float = 3.0) -> StoredImages:
    """A frame of the box room; its color says its number, by which the fake knows the motion."""
    height = HEIGHTS[number]
    color = np.full((480, 640, 3), number, dtype=np.uint8)
    return StoredImages(str(number), color, room_depth(height=height, pitch=PITCH, wall=wall))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    """Stands for Open3D: the true motion between frames whatever they show; keeps the first guesses."""
    fake = MagicMock(guesses=[])

    def motion(source: Any, target: Any, camera: Any, guess: Any, jacobian: Any, option: Any) -> tuple[bool, Any, None]:
        fake.guesses.append(guess)
        first, second = (int(one[0, 0].mean()) for one in (source, target))
        return True, np.linalg.inv(pose(HEIGHTS[second])) @ pose(HEIGHTS[first]), None

    fake.geometry.Image = np.asarray
    fake.geometry.RGBDImage.create_from_color_and_depth = lambda color, depth, **options: color
    fake.pipelines.odometry.compute_rgbd_odometry = motion
    monkeypatch.setitem(sys.modules, "open3d", fake)
    return fake


def test_poses_follow_from_the_motions(fake: MagicMock) -> None:
    odometry = Odometry(settings_of())
    found = [odometry.add(frame(number)) for number in range(3)]
    assert [begins for _, begins in found] == [True, False, False]
    first = np.linalg.inv(found[0][0])
    for height, (given, _) in zip(HEIGHTS, found, strict=True):
        np.testing.assert_allclose(first @ given, np.linalg.inv(pose(HEIGHTS[0])) @ pose(height), atol=1e-9)
    # The camera is assumed to be where the last frame was.
    np.testing.assert_allclose(fake.guesses[-1], np.linalg.inv(pose(HEIGHTS[0])) @ pose(HEIGHTS[1]), atol=1e-9)


def test_a_part_begins_where_the_depth_contradicts(fake: MagicMock) -> None:
    odometry = Odometry(settings_of())
    odometry.add(frame(0))
    lost, begins = odometry.add(frame(1, wall=1.5))
    assert begins
    found, begins = odometry.add(frame(2, wall=1.5))
    assert not begins
    expected = np.linalg.inv(pose(HEIGHTS[1])) @ pose(HEIGHTS[2])
    np.testing.assert_allclose(np.linalg.inv(lost) @ found, expected, atol=1e-9)


def test_no_axis_of_the_world_is_near_the_vertical(fake: MagicMock) -> None:
    """Or else it would be taken for the vertical, which the first camera need not hold."""
    first, _ = Odometry(settings_of()).add(frame(0))
    for off in (-70.0, -40.0, -20.0, 0.0, 20.0):
        up = camera_pose(1.4, yaw=0.0, pitch=np.radians(off), roll=0.0)[2, :3]
        assert np.abs(first[:3, :3] @ up).max() < np.cos(np.radians(30))


def test_poses_are_those_of_the_stored_images(fake: MagicMock) -> None:
    """Images that are stored upside down are rotated for the odometry, and the poses back."""
    settings = CameraSettings(intrinsics=settings_of().intrinsics, rotate=180)
    odometry, turn = Odometry(settings), np.diag([-1.0, -1, 1, 1])
    poses = []
    for number in range(2):
        upright = frame(number)
        assert upright.color is not None
        stored = StoredImages(upright.name, upright.color[::-1, ::-1], upright.depth[::-1, ::-1])
        poses.append(odometry.add(stored)[0])
    expected = np.linalg.inv(pose(HEIGHTS[0])) @ pose(HEIGHTS[1])
    np.testing.assert_allclose(turn @ np.linalg.inv(poses[0]) @ poses[1] @ turn, expected, atol=1e-6)


def test_what_is_needed(fake: MagicMock, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="color"):
        Odometry(settings_of()).add(StoredImages("0", None, room_depth()))
    monkeypatch.setitem(sys.modules, "open3d", None)
    with pytest.raises(DataError, match=r"ammnet-sparse\[odometry\]"):
        Odometry(settings_of())
