"""Frames of a user's camera: gravity, floor and room found in the depth, poses of any world, images of any size."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ammnet_sparse.camera.files.frame_files import FrameFiles, find_frames
from ammnet_sparse.camera.files.poses import read_trajectory
from ammnet_sparse.camera.files.stored import StoredImages
from ammnet_sparse.camera.frames import CameraFrame, make_frame, read_frame
from ammnet_sparse.camera.geometry.given_pose import axis_direction, nearest_axis
from ammnet_sparse.camera.geometry.placement import Placement, place_camera
from ammnet_sparse.camera.geometry.room import ASSUMED_CAMERA_HEIGHT, find_heading, world_pose
from ammnet_sparse.camera.geometry.surface import CAMERA_UP, surface_from_depth
from ammnet_sparse.camera.images import CameraImages, camera_images, to_network_images, turned_camera, turned_pose
from ammnet_sparse.camera.resizing import MEAN_COLOR
from ammnet_sparse.camera.settings import CameraSettings
from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.grid import GRID_SHAPE, IMAGE_SHAPE, UNMAPPED
from ammnet_sparse.data.raw.frames import read_depth, read_raw_labels
from ammnet_sparse.data.synthetic.raycast import camera_pose
from ammnet_sparse.data.volumes import camera as cameras
from ammnet_sparse.data.volumes import tsdf
from ammnet_sparse.data.volumes.camera import NYU_CAMERA, Camera
from ammnet_sparse.files.errors import DataError
from tests.camera.own_views import (
    RoomView,
    angle,
    box_room,
    gray_image,
    heading_of,
    room_view,
    scaled_camera,
    settings_of,
    with_waves,
)


@pytest.fixture(scope="module")
def view() -> RoomView:
    """Much floor, and a camera that is turned against the room by 15 degrees and more."""
    return next(v for v in (room_view(seed, "floor") for seed in range(50)) if abs(heading_of(v.pose)) > 15)


@pytest.fixture(scope="module")
def placement(view: RoomView) -> Placement:
    return place_camera(view.depth, camera=NYU_CAMERA)


def frame_of(depth: NDArray[np.float32], pose: NDArray[np.float64] | None = None, **settings: Any) -> CameraFrame:
    return make_frame(CameraImages(gray_image(), depth, NYU_CAMERA, pose=pose), settings_of(**settings), name="mine")


# Gravity, floor and room.


@pytest.mark.parametrize("kind", ["floor", "no floor"])
def test_gravity_in_generated_rooms(kind: str) -> None:
    views = [room_view(seed, kind) for seed in range(5)]  # type: ignore[arg-type]
    found = [place_camera(view.depth, camera=NYU_CAMERA) for view in views]
    assert max(angle(p.up, view.up) for p, view in zip(found, views, strict=True)) < 2.0
    # Where no floor is seen, a wall or the ceiling may be one: that is likely at best, unless someone tells.
    assert all((p.up_confidence == "sure") == (kind == "floor") for p in found)
    told = [place_camera(view.depth, camera=NYU_CAMERA, is_told_upright=True) for view in views]
    assert sum(p.up_confidence == "sure" for p in told) >= 4
    for p, view in zip(found, views, strict=True):
        turned = (heading_of(p.pose) - heading_of(view.pose) + 45) % 90 - 45
        assert p.heading.is_room_axis and abs(turned) < 5
        if kind == "floor" and p.floor.is_seen:
            assert abs(p.floor.below - view.height) < 0.05
    if kind == "floor":
        assert sum(p.floor.is_seen for p in found) >= 4
    else:
        assert {(p.floor.is_seen, p.floor.confidence) for p in found} == {(False, "guess")}
        assert all(p.floor.below >= ASSUMED_CAMERA_HEIGHT for p in found)


@pytest.mark.parametrize("seed", [10, 14, 42])
def test_a_wall_of_wavy_depth_gives_the_direction_of_the_room(seed: int) -> None:
    view = room_view(seed, "no floor")
    for length, amplitude in ((0.4, 0.02), (0.8, 0.02), (1.6, 0.04), (1.6, 0.06)):
        surface = surface_from_depth(with_waves(view, length=length, amplitude=amplitude), camera=NYU_CAMERA)
        found = find_heading(surface, view.up)
        turned = heading_of(world_pose(view.up, forward=found.forward, height=1)) - heading_of(view.pose)
        assert abs((turned + 45) % 90 - 45) < 1 or not found.is_room_axis


def test_uneven_ground_has_no_direction() -> None:
    v, u = np.mgrid[: IMAGE_SHAPE[0], : IMAGE_SHAPE[1]]
    depth = 2.5 + 0.4 * np.sin(0.02 * u + 0.01 * v) + 0.3 * np.sin(0.025 * v - 0.012 * u + 1)
    found = find_heading(surface_from_depth(depth.astype(np.float32), camera=NYU_CAMERA), CAMERA_UP)
    assert not found.is_room_axis and found.turn == 0


@pytest.mark.slow
def test_error_statistics(capsys: pytest.CaptureFixture[str]) -> None:
    """Over many rooms; docs/own_camera.md has the figures of more."""
    report = []
    for kind in ("floor", "no floor"):
        views = [room_view(seed, kind) for seed in range(100, 125)]  # type: ignore[arg-type]
        found = [place_camera(view.depth, camera=NYU_CAMERA) for view in views]
        up = np.array([angle(p.up, view.up) for p, view in zip(found, views, strict=True)])
        height = np.array([p.floor.below - view.height for p, view in zip(found, views, strict=True)])
        is_seen = np.array([p.floor.is_seen for p in found])
        report.append(f"{kind}: up, degrees: {_percentiles(up)}")
        for name, mask in (("seen", is_seen), ("assumed", ~is_seen)):
            if mask.any():
                report.append(f"  floor {name} ({mask.sum()}), cm: {_percentiles(100 * np.abs(height[mask]))}")
        assert np.percentile(up, 95) < 1.0 and up.max() < 4.0
        if kind == "floor":
            assert is_seen.mean() > 0.85
            assert np.percentile(np.abs(height[is_seen]), 95) < 0.04
        else:
            # A bed or table far below a camera held high looks like a floor, rarely.
            assert (np.array([p.floor.confidence == "sure" for p in found]) & (np.abs(height) > 0.1)).sum() <= 1
    with capsys.disabled():
        print("", *report, sep="\n")


def _percentiles(values: NDArray[np.float64]) -> str:
    names = ("median", "90 %", "95 %", "largest")
    return ", ".join(f"{n} {v:.2f}" for n, v in zip(names, np.percentile(values, [50, 90, 95, 100]), strict=True))


def test_ordinary_rgbd_frame(shared_data: Path) -> None:
    """Another camera's frame: up and floor are right, in its camera and in the world of its pose.

    The pose's camera has x right, y down, z forward; its world is the sequence's first camera, so that no axis of it
    is vertical: the nearest, -y, is 26 degrees off. Floor, table top and cabinets show that.
    """
    folder = shared_data / "rgbd"
    paths, unmatched = find_frames(folder, folder, pose=folder)
    assert [path.name for path in paths] == ["frame-000000"] and not unmatched
    settings = CameraSettings(intrinsics=folder / "camera-intrinsics.txt")
    own = read_frame(paths[0], settings)
    alone = read_frame(FrameFiles("x", paths[0].color, paths[0].depth), settings)
    np.testing.assert_allclose(own.placement.pose, alone.placement.pose, atol=1e-12)
    placed, given = own.placement, read_trajectory(folder / "frame-000000.pose.txt").pose_of(None)
    assert placed.up_confidence == "sure" and placed.floor.is_seen and placed.floor.confidence == "sure"
    axis, off = nearest_axis(given, placed.up)
    assert axis == "-y" and 20 < off < 30

    # Three surfaces cut out by hand (rows, columns): the carpet, the table top, the front of the cabinet on the left.
    floor, table, front = (
        _plane(own.images, box) for box in ((340, 470, 20, 170), (220, 360, 320, 600), (120, 220, 20, 150))
    )
    # In the pose's world, where the vertical is (0.03, -0.91, -0.42) by the carpet and (0.02, -0.88, -0.47) by the
    # table: 3.3 degrees apart, so bent is the depth of this camera.
    rotation = given[:3, :3]
    up_in_given = rotation @ placed.up
    assert angle(up_in_given, rotation @ floor[0]) < 3 and angle(up_in_given, rotation @ table[0]) < 3
    assert abs(angle(up_in_given, rotation @ front[0]) - 90) < 3
    assert placed.floor.below == pytest.approx(-floor[1], abs=0.04)

    # The carpet lies at height 0, the table top 0.7 m higher, and left stays left.
    def heights(points: NDArray[np.float64]) -> NDArray[np.float64]:
        return (points @ placed.pose[:3, :3].T + placed.pose[:3, 3])[:, 2]

    assert np.abs(np.percentile(heights(floor[2]), [5, 50, 95])).max() < 0.05
    assert np.median(heights(table[2])) == pytest.approx(0.71, abs=0.05)
    assert placed.world_from_given is not None
    np.testing.assert_allclose(placed.world_from_given @ given, placed.pose, atol=1e-9)
    mapping = own.mapping
    x, height, _ = np.nonzero(mapping != UNMAPPED)
    row, column = np.divmod(mapping[mapping != UNMAPPED], IMAGE_SHAPE[1])
    assert np.corrcoef(x, column)[0, 1] > 0.5
    assert np.corrcoef(height, row)[0, 1] < -0.3
    assert (mapping[:, 0] != UNMAPPED).sum() > 100  # the carpet fills the lowest layer


def _plane(images: CameraImages, box: tuple[int, int, int, int]) -> tuple[NDArray, float, NDArray]:
    """Unit normal towards the camera, distance along it, and points of the plane in a part of the image."""
    v, u = np.mgrid[box[0] : box[1], box[2] : box[3]]
    z = images.depth[v, u].astype(np.float64)
    points = np.stack([(u - images.camera.cx) * z / images.camera.fx, (v - images.camera.cy) * z / images.camera.fy, z])
    points = points[:, z > 0].T
    for _ in range(5):
        center = points.mean(axis=0)
        normal = np.linalg.svd(points - center, full_matrices=False)[2][2]
        points = points[np.abs((points - center) @ normal) < 0.03]
    normal *= -np.sign(normal @ center)
    return normal, float(normal @ center), points


def test_published_frame_from_its_depth(shared_data: Path) -> None:
    """A view without floor: with the published pose its volumes come out exactly, without it nearly the same."""
    depth, _ = read_depth(shared_data / "raw" / "NYU0003_0000.png", "rotated")
    pose = read_raw_labels(shared_data / "raw" / "NYU0003_0000.bin").pose
    reference = np.load(shared_data / "raw" / "NYU0003_reference.npz", allow_pickle=False)
    own = frame_of(depth, pose)
    np.testing.assert_array_equal(tsdf.mapping_to_disk(own.mapping).reshape(-1), reference["mapping"])
    off = np.abs(own.tsdf.reshape(-1) - reference["tsdf"])
    assert (off > 1e-6).sum() < 20 and off.max() < 1.01 / 64  # ties between pixels: the origin differs by 1e-7
    assert own.placement.floor.confidence == "likely"

    alone = place_camera(depth, camera=NYU_CAMERA)
    assert angle(alone.up, pose[2, :3]) < 1.0
    assert alone.floor.confidence == "guess"
    assert alone.floor.below == pytest.approx(pose[2, 3], abs=0.06)
    assert abs(heading_of(alone.pose) - heading_of(pose)) < 1.0


def test_too_little_surface_is_a_guess() -> None:
    depth = np.zeros(IMAGE_SHAPE, dtype=np.float32)
    depth[200:240, 300:340] = 2.0
    found = place_camera(depth, camera=NYU_CAMERA)
    assert found.up_confidence == "guess" and found.floor.confidence == "guess" and not found.heading.is_room_axis
    np.testing.assert_allclose(found.pose, camera_pose(ASSUMED_CAMERA_HEIGHT, yaw=0, pitch=0, roll=0), atol=1e-12)
    text = "\n".join(found.describe())
    assert "`camera_height`" in text and "`pose`" in text


def test_known_height_is_used(view: RoomView, placement: Placement) -> None:
    found = place_camera(view.depth, camera=NYU_CAMERA, camera_height=0.4)
    assert found.pose[2, 3] == 0.4 and found.floor.reason.endswith("as given")
    assert "sure" in "\n".join(placement.describe())


# Poses of other worlds.

_WORLDS = {
    "z up": np.eye(3),
    "y up": np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]),
    "y down": np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]),
}


@pytest.mark.parametrize(("world", "axis"), [("z up", "z"), ("y up", "y"), ("y down", "-y")])
def test_upright_worlds(view: RoomView, world: str, axis: str) -> None:
    """Whatever axis is up: the pose's vertical, height 0 and walls are taken over exactly."""
    given = np.eye(4)
    given[:3, :3] = _WORLDS[world] @ view.pose[:3, :3]
    given[:3, 3] = _WORLDS[world] @ (view.pose[:3, 3] + (3.0, -2.0, 0.0))
    found = place_camera(view.depth, camera=NYU_CAMERA, pose=given)
    assert nearest_axis(given, found.up) == (axis, pytest.approx(0, abs=1e-5))
    assert found.pose[2, 3] == pytest.approx(view.height, abs=1e-9)
    np.testing.assert_allclose(found.pose[:3, :3] @ view.pose[:3, :3].T, np.eye(3), atol=1e-9)


def test_pose_with_its_origin_at_the_camera(view: RoomView, placement: Placement) -> None:
    """Upright, but its height 0 is not the floor: the floor seen counts."""
    given = view.pose.copy()
    given[:3, 3] = 0
    found = place_camera(view.depth, camera=NYU_CAMERA, pose=given)
    assert found.floor.is_seen and found.pose[2, 3] == pytest.approx(view.height, abs=0.05)
    assert angle(found.up, view.up) < 1e-5


def test_world_of_the_first_camera(view: RoomView, placement: Placement) -> None:
    """A pose of 1 says nothing of the vertical: the result is that without a pose, and this is said."""
    tilted = np.eye(4)
    found = place_camera(view.depth, camera=NYU_CAMERA, pose=tilted)
    assert angle(view.up, axis_direction(tilted, "-y")) > 4
    np.testing.assert_allclose(found.pose, placement.pose)
    assert "not upright" in found.up_reason and "`pose_up`" in found.up_reason
    told = place_camera(view.depth, camera=NYU_CAMERA, pose=tilted, pose_up="-y")
    np.testing.assert_allclose(told.up, [0, -1, 0])


def test_a_wrong_axis_given_as_up_is_not_called_sure(view: RoomView) -> None:
    found = place_camera(view.depth, camera=NYU_CAMERA, pose=view.pose, pose_up="x")
    assert found.up_confidence == "likely" and found.contradicts_depth
    assert "where the pose's z is up" in found.up_reason
    advice = [line for line in found.describe() if line.startswith("advice")]
    assert any("check which axis is up" in line for line in advice) and not any("`rotate" in line for line in advice)
    right = place_camera(view.depth, camera=NYU_CAMERA, pose=view.pose, pose_up="z")
    assert right.up_confidence == "sure" and not right.contradicts_depth
    assert not any("check which axis" in line for line in right.describe())


# Frames.


def test_frame_of_a_view(view: RoomView) -> None:
    frame = own = frame_of(view.depth, view.pose)
    assert (frame.frame_id, frame.label, frame.grid_shape) == ("mine", None, GRID_SHAPE)
    is_hit = frame.mapping != UNMAPPED
    np.testing.assert_array_equal(frame.label_weight, (frame.tsdf < 0.999) | is_hit)
    np.testing.assert_allclose(own.origin, cameras.own_frame_origin(own.placement.pose))
    # Reliable: every hit voxel but those outside of the box, nothing in observed free space, a part of the rest.
    assert (own.reliable_mask & is_hit).sum() > 0.97 * is_hit.sum()
    assert (frame.tsdf[own.reliable_mask & ~is_hit] < 0).all()
    assert not own.reliable_mask.all() and own.reliable_mask[:, 0].any()
    batch = Batch.from_frame(frame)
    assert batch.image is not None and batch.label is None
    flipped = frame_of(view.depth, view.pose, tsdf_is_flipped=True)
    assert flipped.tsdf_is_flipped
    np.testing.assert_array_equal(flipped.tsdf, tsdf.flip_tsdf(frame.tsdf))
    np.testing.assert_array_equal(flipped.label_weight, frame.label_weight)


def test_depth_far_from_the_grid_is_refused() -> None:
    with pytest.raises(DataError, match="frame mine: expected depth within the grid"):
        frame_of(np.full(IMAGE_SHAPE, 19.0, dtype=np.float32))
    values = np.linspace(7000, 17000, IMAGE_SHAPE[0]).astype(np.uint16)[:, None].repeat(IMAGE_SHAPE[1], 1)
    stored = StoredImages("mine", None, values)  # TUM's units, no scale given
    settings = settings_of()
    with pytest.raises(DataError, match=r"5000 .* gives 2\.4 m"):
        make_frame(camera_images(stored, settings), settings, name="mine")


def test_wide_images_are_padded_above_and_below() -> None:
    camera = Camera(900.0, 900.0, 639.5, 359.5)
    image = np.zeros((720, 1280, 3), dtype=np.uint8)
    image[:, 640:] = 255
    label_map = np.full((720, 1280), 5, dtype=np.uint8)
    depth = np.full((360, 640), 2.0, dtype=np.float32)  # half the size: the intrinsics are the color image's
    images = to_network_images(image, depth, camera=camera, label_map=label_map)
    assert images.camera == Camera(450.0, 450.0, 319.5, 239.5)
    assert not images.depth[:60].any() and not images.depth[420:].any() and (images.depth[60:420] == 2.0).all()
    assert (images.image[:60] == MEAN_COLOR).all()
    assert images.image[200, 300].tolist() == [0, 0, 0] and images.image[200, 340].tolist() == [255, 255, 255]
    assert images.label_map is not None and set(np.unique(images.label_map[60:420])) == {5}
    assert not images.label_map[:60].any()


def test_depth_is_never_mixed_across_an_edge() -> None:
    depth = np.full((120, 160), 1.0, dtype=np.float32)
    depth[:, 80:], depth[60:] = 3.0, 0.0
    found = to_network_images(gray_image((120, 160)), depth, camera=scaled_camera(0.25)).depth
    assert set(np.unique(found)) == {0.0, 1.0, 3.0}


def test_label_maps_of_another_size() -> None:
    label_map = np.zeros((240, 320), dtype=np.uint8)
    label_map[:, 160:] = 12
    given = gray_image((960, 1280)), np.ones((480, 640), np.float32)
    found = to_network_images(*given, camera=NYU_CAMERA, label_map=label_map).label_map
    assert found is not None and found.shape == (480, 640)
    assert not found[:, :320].any() and (found[:, 320:] == 12).all()
    with pytest.raises(DataError, match="label map: expected the proportions of the color image 1280x960, found 320x"):
        to_network_images(*given, camera=NYU_CAMERA, label_map=label_map[:180])


@pytest.mark.parametrize("roll", [-8.0, 0.0, 6.0])
@pytest.mark.parametrize("world", ["z", "y"])
def test_poses_with_y_up_and_z_back_are_noticed(roll: float, world: str) -> None:
    """Where they fit the depth better: by the tilt, or by the floor's height; nobody else's word is needed."""
    depth, pose = box_room(3, roll=roll)
    turn = np.eye(4) if world == "z" else np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
    opencv = turn @ pose
    opengl = opencv @ np.diag([1.0, -1, -1, 1])
    stored = StoredImages("x", None, depth, pose=opengl)
    found = make_frame(camera_images(stored, settings_of()), settings_of(), name="x").placement
    assert angle(found.up, pose[2, :3]) < 0.1 and abs(found.pose[2, 3] - pose[2, 3]) < 0.05
    assert found.world_from_given is not None and "opengl" in found.up_reason
    np.testing.assert_allclose(found.world_from_given @ opencv, found.pose, atol=1e-6)
    told = settings_of(pose_convention="opencv")
    insisted = make_frame(camera_images(stored, told), told, name="x").placement
    assert "opengl" not in insisted.up_reason
    kept = make_frame(
        camera_images(dataclasses.replace(stored, pose=opencv), settings_of()), settings_of(), name="x"
    ).placement
    assert kept.world_from_given is not None and "opengl" not in kept.up_reason
    np.testing.assert_allclose(kept.world_from_given, found.world_from_given, atol=1e-6)


def test_a_turned_image_turns_poses_of_either_convention() -> None:
    depth, pose = box_room(3, roll=6.0)
    turned = StoredImages(
        "x", None, np.ascontiguousarray(np.rot90(depth)), pose=turned_pose(pose, 270) @ np.diag([1.0, -1, -1, 1])
    )
    lying = turned_camera(NYU_CAMERA, 270, IMAGE_SHAPE, IMAGE_SHAPE)[0]
    settings = settings_of(lying, rotate=90, pose_convention="opengl")
    np.testing.assert_allclose(camera_images(turned, settings).pose, pose, atol=1e-9)
    other = camera_images(turned, settings_of(lying, rotate=90)).other_pose
    np.testing.assert_allclose(other, pose, atol=1e-9)
