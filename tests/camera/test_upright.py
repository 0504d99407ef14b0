"""Cameras held in any way: what is called sure is right, and what cannot be told is said; frames after one another."""

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from ammnet_sparse.camera.frames import make_frame
from ammnet_sparse.camera.geometry.placement import Placement, place_camera
from ammnet_sparse.camera.geometry.room import find_floor
from ammnet_sparse.camera.geometry.surface import surface_from_depth
from ammnet_sparse.camera.images import CameraImages, turned_camera, turned_image, turned_pose
from ammnet_sparse.data.grid import IMAGE_SHAPE
from ammnet_sparse.data.synthetic.raycast import camera_pose
from ammnet_sparse.data.volumes.camera import NYU_CAMERA, Camera
from ammnet_sparse.files.errors import DataError
from tests.camera.own_views import angle, box_room, gray_image, room_view, settings_of

Vector = NDArray[np.float64]


def lying(depth: NDArray[np.float32], pose: NDArray[np.float64], degrees: int) -> tuple[NDArray, Camera, Vector]:
    """Depth turned clockwise, its intrinsics, and the vertical in its camera's coordinates."""
    camera, _ = turned_camera(NYU_CAMERA, degrees, depth.shape, depth.shape)
    return turned_image(depth, degrees), camera, turned_pose(pose, degrees)[2, :3]


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_sure_is_right_of_images_on_their_side(degrees: int) -> None:
    """Rooms seen lying: some are found as they are; of the others none is called sure, nor is their floor."""
    views = [room_view(seed, "floor") for seed in range(6)]
    given = [(view.depth, view.pose) for view in views] + [box_room(seed) for seed in range(6)]
    right = 0
    for depth, pose in given:
        turned, camera, up = lying(depth, pose, degrees)
        found = place_camera(turned, camera=camera)
        is_right = angle(found.up, up) < 5
        right += is_right
        if is_right:  # the advice turns the images upright
            assert f"`rotate={360 - degrees}`" in "\n".join(found.describe())
        else:
            assert found.up_confidence != "sure" and found.floor.confidence != "sure"
            assert found.alternative is not None and "`rotate=" in "\n".join(found.describe())
    assert right >= 1


@pytest.mark.parametrize("roll", [0.0, 90.0, 200.0])
def test_straight_down(roll: float) -> None:
    """Above boxes on a floor: often found (not where none is in view), and never called sure of anything else."""
    right = 0
    for seed in range(6):
        depth, pose = box_room(seed, height=1.6, pitch=-86.0, roll=roll)
        found = place_camera(depth, camera=NYU_CAMERA)
        is_right = angle(found.up, pose[2, :3]) < 3
        right += is_right
        if is_right:
            assert found.floor.below == pytest.approx(1.6, abs=0.05)
        else:
            assert found.up_confidence != "sure"
    assert right >= 3


def test_one_plane_is_a_guess() -> None:
    """A wall that fills the view, or the floor from straight above: nothing tells, and both are named."""
    for meters in (1.5, 2.0):
        depth = np.full(IMAGE_SHAPE, meters, dtype=np.float32)
        found = place_camera(depth, camera=NYU_CAMERA)
        assert angle(found.up, np.array([0.0, -1.0, 0.0])) < 3 and found.up_confidence == "guess"
        assert "straight down" in "\n".join(found.describe())
        above = place_camera(depth, camera=NYU_CAMERA, pose=np.eye(4), pose_up="-z")
        assert above.floor.below == pytest.approx(meters, abs=0.01) and above.up_confidence == "sure"


def test_pose_tells_what_is_up() -> None:
    """A camera on its side whose pose's world has Z up: the walls agree with X and Y, but Z is taken."""
    for seed in range(4):
        depth, pose = box_room(seed)
        turned, camera, up = lying(depth, pose, 90)
        found = place_camera(turned, camera=camera, pose=turned_pose(pose, 90))
        assert angle(found.up, up) < 1e-3 and found.up_confidence == "sure"
        assert found.pose[2, 3] == pytest.approx(1.4, abs=0.02)


def test_floor_just_below_a_robot() -> None:
    """Several square meters, 0.4 m below: a floor; a table top as near is none."""
    heights = []
    for seed in range(8):
        depth, pose = box_room(seed, height=0.4, pitch=-10.0)
        floor = find_floor(surface_from_depth(depth, camera=NYU_CAMERA), pose[2, :3])
        if floor.is_seen:
            assert floor.area > 2
            heights.append(floor.below)
    assert len(heights) >= 5
    np.testing.assert_allclose(heights, 0.4, atol=0.02)
    table = box_room(0, height=0.4, pitch=-10.0)[0]
    points_z = np.where(table > 1.6, 0, table).astype(np.float32)  # what is left is 1.6 m long at most
    assert not find_floor(
        surface_from_depth(points_z, camera=NYU_CAMERA), camera_pose(0.4, yaw=0, pitch=-0.17, roll=0)[2, :3]
    ).is_seen


# What lies in the grid.


def test_what_the_grid_covers_is_said_truly() -> None:
    """Level it reaches from 1.0 to 5.8 m ahead, straight down it has the camera in its middle."""
    wall = np.full(IMAGE_SHAPE, 7.0, dtype=np.float32)
    wall[300:, :200] = 5.0
    level = camera_pose(1.4, yaw=0, pitch=0, roll=0)
    own = make_frame(CameraImages(gray_image(), wall, NYU_CAMERA, pose=level), settings_of(), name="x")
    text = "\n".join(own.describe())
    assert own.coverage.share < 0.5 and "1.0 to 5.8 m ahead of the camera" in text and "lies farther" in text
    down = camera_pose(1.4, yaw=0, pitch=-math.pi / 2, roll=0)
    depth = np.full(IMAGE_SHAPE, 1.4, dtype=np.float32)
    depth[:, 200:] = 6.0
    settings = settings_of(pose_up="z", camera_height=1.4)
    own = make_frame(CameraImages(gray_image(), depth, NYU_CAMERA, pose=down), settings, name="x")
    text = "\n".join(own.describe())
    assert "2.4 m behind the camera to 2.4 m ahead" in text and "below the floor" in text
    assert own.coverage.share == pytest.approx(200 / 640, abs=0.01)


def test_depth_that_no_fourth_pixel_has() -> None:
    """Its share is a number."""
    depth = np.zeros(IMAGE_SHAPE, dtype=np.float32)
    depth[241:243, 321:323] = 2.0
    own = make_frame(CameraImages(gray_image(), depth, NYU_CAMERA), settings_of(), name="x")
    assert own.coverage.share == 1.0 and "nan" not in "\n".join(own.describe())
    with pytest.raises(DataError, match="frame x: expected depth, found no valid pixel"):
        make_frame(CameraImages(None, np.zeros(IMAGE_SHAPE, np.float32), NYU_CAMERA), settings_of(), name="x")


# Frames after one another.


def noisy(depth: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """With the noise of structured light and a third of the pixels missing, in patches."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 0.004, depth.shape) * depth**2
    holes = np.kron(rng.random((30, 40)) < 0.3, np.ones((16, 16), dtype=bool))
    return np.where(holes, 0, depth + noise).astype(np.float32)


def test_a_still_camera_stays_still() -> None:
    depth, pose = box_room(4)
    previous: Placement | None = None
    ups, heights = [], []
    for seed in range(6):
        previous = place_camera(noisy(depth, seed), camera=NYU_CAMERA, previous=previous)
        assert previous.is_continued == (seed > 0)
        ups.append(previous.up)
        heights.append(previous.pose[2, 3])
    assert max(angle(up, pose[2, :3]) for up in ups) < 0.5
    assert np.abs(np.diff(heights)).max() < 0.01 and heights[-1] == pytest.approx(1.4, abs=0.02)
    alone = [place_camera(noisy(depth, seed), camera=NYU_CAMERA).up for seed in range(6)]
    largest = [max(angle(a, b) for a, b in itertools.pairwise(these[1:])) for these in (ups, alone)]
    assert largest[0] <= largest[1]


def test_a_camera_that_is_turned_is_followed() -> None:
    previous: Placement | None = None
    for pitch in (-20.0, -24.0, -28.0):
        depth, pose = box_room(4, pitch=pitch)
        found = place_camera(depth, camera=NYU_CAMERA, previous=previous)
        assert found.is_continued == (previous is not None)
        assert angle(found.up, pose[2, :3]) < 1 and found.pose[2, 3] == pytest.approx(1.4, abs=0.03)
        previous = found


def test_a_floor_out_of_sight_is_kept() -> None:
    """The camera's lower half is covered: the floor before counts, as nothing lies below it."""
    depth, _ = box_room(4)
    previous = place_camera(depth, camera=NYU_CAMERA)
    covered = depth.copy()
    covered[200:] = 0
    found = place_camera(covered, camera=NYU_CAMERA, previous=previous)
    assert found.is_continued and found.pose[2, 3] == pytest.approx(previous.pose[2, 3], abs=0.01)
    assert not place_camera(covered, camera=NYU_CAMERA).floor.is_seen


@pytest.mark.slow
def test_statistics_of_cameras_held_in_any_way(capsys: pytest.CaptureFixture[str]) -> None:
    """docs/own_camera.md has the figures: what is found, and what is called sure, of each way to hold a camera."""
    floor = [(view.depth, view.pose) for view in (room_view(seed, "floor") for seed in range(200, 225))]
    no_floor = [(view.depth, view.pose) for view in (room_view(seed, "no floor") for seed in range(200, 215))]
    kinds = {
        "upright": (floor, 0),
        "upright, no floor in view": (no_floor, 0),
        **{f"turned by {degrees}": (floor, degrees) for degrees in (90, 180, 270)},
        "straight down": ([box_room(seed, height=1.6, pitch=-86.0, roll=40.0 * seed) for seed in range(25)], 0),
        "0.4 m above the floor": ([box_room(seed, height=0.4, pitch=-8.0) for seed in range(25)], 0),
    }
    lines = []
    for name, (given, degrees) in kinds.items():
        counts = {"right": 0, "sure and right": 0, "sure and wrong": 0}
        for depth, pose in given:
            turned, camera, up = lying(depth, pose, degrees)
            found = place_camera(turned, camera=camera)
            is_right, is_sure = angle(found.up, up) < 5, found.up_confidence == "sure"
            counts["right"] += is_right
            counts["sure and right"] += is_sure and is_right
            counts["sure and wrong"] += is_sure and not is_right
        lines.append(f"{name}: of {len(given)} {counts}")
        assert counts["sure and wrong"] <= (0 if degrees == 0 else 3)
        if name.startswith("upright"):
            assert counts["right"] == len(given)
        if name == "upright":
            assert counts["sure and right"] >= 0.7 * len(given)
    with capsys.disabled():
        print("", *lines, sep="\n")
