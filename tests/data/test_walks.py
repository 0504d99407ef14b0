"""Walks through generated rooms: where the camera is, the truth of the room, and the files."""

import json
import math
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest

from ammnet_sparse.cli.main import main
from ammnet_sparse.data.grid import CLASS_NAMES, EMPTY_LABEL, IGNORE_LABEL, VOXEL_SIZE
from ammnet_sparse.data.synthetic.generate import RoomsError
from ammnet_sparse.data.synthetic.walk import Walk, make_walk, room_labels
from ammnet_sparse.data.synthetic.walks import generate_walks
from ammnet_sparse.data.volumes.camera import NYU_CAMERA


@pytest.fixture(scope="module")
def walks() -> list[Walk]:
    return [make_walk(11, index, views=10) for index in range(3)]


def voxels_at(points: np.ndarray, walk: Walk) -> np.ndarray:
    """Classes of the room at world points [N, 3]."""
    labels, origin = room_labels(walk.scene)
    x, y, height = np.floor((points - origin) / VOXEL_SIZE).astype(int).T
    return labels[x, height, y]


def test_the_camera_walks_smoothly_through_free_space(walks: list[Walk]) -> None:
    for walk in walks:
        positions, forward = walk.poses[:, :3, 3], walk.poses[:, :2, 2]
        assert (voxels_at(positions, walk) == EMPTY_LABEL).all()
        assert ((positions[:, 2] > 1.2) & (positions[:, 2] < 1.75)).all()
        steps = np.linalg.norm(np.diff(positions[:, :2], axis=0), axis=1)
        assert 1.5 < steps.sum() < 15 and steps.max() < 1.1 * np.median(steps)
        heading = np.unwrap(np.arctan2(forward[:, 1], forward[:, 0]))
        assert np.abs(np.diff(heading)).max() < math.radians(75)
        assert np.ptp(heading) > math.radians(60)


def test_what_the_camera_sees_is_in_the_truth_of_the_room(walks: list[Walk]) -> None:
    for walk in walks:
        view = walk.images(4, noise="none").view
        v, u = (index[::7] for index in np.nonzero(view.depth))
        z = view.depth[v, u].astype(np.float64)
        points = np.stack([(u - NYU_CAMERA.cx) * z / NYU_CAMERA.fx, (v - NYU_CAMERA.cy) * z / NYU_CAMERA.fy, z], axis=1)
        pose = walk.poses[4]
        found = voxels_at(points @ pose[:3, :3].T + pose[:3, 3], walk)
        assert (found == walk.scene.label[view.shape[v, u]]).mean() > 0.8
        assert np.isin(found, (EMPTY_LABEL, IGNORE_LABEL)).mean() < 0.1


def test_a_walk_depends_on_seed_and_index_only(walks: list[Walk]) -> None:
    again = make_walk(11, 1, views=10)
    np.testing.assert_array_equal(again.poses, walks[1].poses)
    np.testing.assert_array_equal(again.images(3, noise="kinect").depth, walks[1].images(3, noise="kinect").depth)
    assert (again.poses != walks[2].poses).any()


def test_files_are_a_posed_sequence_and_the_truth(tmp_path: Path) -> None:
    out = tmp_path / "walks"
    command = ["data", "rooms", "--out", str(out), "--frames", "1", "--views", "2", "--seed", "11", "--workers", "1"]
    assert main([*command, "--quiet"]) == 0
    walk = make_walk(11, 0, views=2)
    assert json.loads((out / "rooms.json").read_text())["views"] == 2
    files = {path.name for path in (out / "0001").iterdir()}
    frames = {f"frame-00000{view}.{kind}" for view in range(2) for kind in ("color.png", "depth.png", "pose.txt")}
    assert files == {*frames, "camera-intrinsics.txt", "truth.npz"}
    images = walk.images(1, noise="kinect")
    np.testing.assert_array_equal(iio.imread(out / "0001" / "frame-000001.color.png"), images.image)
    np.testing.assert_allclose(iio.imread(out / "0001" / "frame-000001.depth.png") / 1000, images.depth, atol=1e-6)
    np.testing.assert_allclose(np.loadtxt(out / "0001" / "frame-000001.pose.txt"), walk.poses[1], atol=1e-8)
    assert np.loadtxt(out / "0001" / "camera-intrinsics.txt")[0, 0] == pytest.approx(NYU_CAMERA.fx)
    truth, (labels, origin) = np.load(out / "0001" / "truth.npz", allow_pickle=False), room_labels(walk.scene)
    np.testing.assert_array_equal(truth["labels"], labels)
    np.testing.assert_array_equal(truth["origin"], origin)
    assert tuple(truth["class_names"]) == CLASS_NAMES and float(truth["voxel_size"]) == VOXEL_SIZE


def test_parameters_are_checked_and_other_walks_kept(tmp_path: Path) -> None:
    out = tmp_path / "walks"
    generate_walks(out, rooms=1, views=1, seed=0, noise="none", workers=1, progress=False)
    with pytest.raises(RoomsError, match="walks"):
        generate_walks(out, rooms=1, views=2, seed=0, noise="none", workers=1, progress=False)
    with pytest.raises(ValueError, match="views"):
        generate_walks(out, rooms=1, views=0, seed=0, noise="none", workers=1, progress=False)
