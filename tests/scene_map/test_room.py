"""Rooms and the estimate of one over many frames: quarter turns, conventions of poses, worlds, and what is known."""

import dataclasses

import numpy as np
import pytest

from ammnet_sparse.camera.files.stored import StoredImages
from ammnet_sparse.camera.images import camera_images
from ammnet_sparse.camera.settings import CameraSettings
from ammnet_sparse.data.synthetic.raycast import camera_pose
from ammnet_sparse.scene_map.estimate import RoomEstimate
from ammnet_sparse.scene_map.room import GivenPose, Room
from tests.camera.own_views import settings_of
from tests.scene_map.support import TILTED, in_world, walk_through


@pytest.fixture(scope="module")
def frames() -> list[StoredImages]:
    return walk_through(4, 6)


def estimated(frames: list[StoredImages], settings: CameraSettings) -> Room:
    estimate = RoomEstimate(settings)
    for frame in frames:
        images = camera_images(frame, settings)
        given = GivenPose.of_images(images)
        assert given is not None
        estimate.add(images, given)
    return estimate.room()


@pytest.mark.parametrize("yaw", [-100, -50, 20, 130])
def test_a_camera_looks_along_y_up_to_quarter_turns(yaw: float) -> None:
    pose = camera_pose(1.4, yaw=np.radians(yaw), pitch=-0.3, roll=0.0)
    placed = Room(np.eye(4)).place(GivenPose(pose))
    assert placed.pose[1, 2] > abs(placed.pose[0, 2]) and placed.pose[2, 3] == pytest.approx(1.4)
    assert placed.world_from_given is not None
    np.testing.assert_allclose(placed.world_from_given @ pose, placed.pose, atol=1e-12)
    np.testing.assert_array_equal(np.abs(placed.world_from_given).sum(axis=0), 1)


def test_an_upright_world_is_kept(frames: list[StoredImages]) -> None:
    room = estimated(frames, settings_of())
    np.testing.assert_allclose(room.map_from_given[:3, :3] @ [0, 0, 1], [0, 0, 1], atol=1e-12)
    assert abs(room.map_from_given[2, 3]) <= 0.021 and room.floor.is_seen
    assert any("floor" in line for line in room.describe())


def test_poses_with_y_up_are_noticed(frames: list[StoredImages]) -> None:
    as_opencv = in_world(frames, TILTED)
    flipped = [dataclasses.replace(frame, pose=frame.pose @ np.diag([1.0, -1, -1, 1])) for frame in as_opencv]
    expected, found = estimated(as_opencv, settings_of()), estimated(flipped, settings_of())
    assert (expected.convention, found.convention) == ("opencv", "opengl")
    np.testing.assert_array_equal(found.map_from_given, expected.map_from_given)


@pytest.mark.parametrize("shift", [(40.0, 25, 0), (0, 0, 60), (0, 0, -10), (-20, 30, -60)])
def test_one_wrong_pose_does_not_move_the_room(frames: list[StoredImages], shift: tuple[float, ...]) -> None:
    jump = np.eye(4)
    jump[:3, 3] = shift
    expected = estimated(frames[:5], settings_of())
    wrong = in_world(frames[5:], jump)
    for order in ([*frames[:5], *wrong], [*wrong, *frames[4::-1]]):
        found = estimated(order, settings_of())
        np.testing.assert_allclose(found.map_from_given, expected.map_from_given, atol=0.021)
        assert found.floor.is_seen and found.floor.below == pytest.approx(expected.floor.below, abs=0.15)
        assert found.floor.confidence == expected.floor.confidence


def test_what_is_known_is_kept_to(frames: list[StoredImages]) -> None:
    heights = [frame.pose[2, 3] for frame in frames if frame.pose is not None]
    told = estimated(frames, settings_of(camera_height=2.0, pose_up="z"))
    assert told.map_from_given[2, 3] + np.mean(heights) == pytest.approx(2.0, abs=0.011)
    np.testing.assert_allclose(told.map_from_given[2, :3], [0, 0, 1], atol=1e-12)
