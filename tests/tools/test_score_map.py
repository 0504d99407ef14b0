"""tools/score_map.py on two frames: what is scored where, and what it reports."""

import json
from pathlib import Path

import numpy as np
import pytest
import score_map

from ammnet_sparse.completion import SceneCompleter
from ammnet_sparse.data.grid import FLOOR_OFFSET, VOXEL_SIZE
from ammnet_sparse.data.synthetic.raycast import fill_voxels
from ammnet_sparse.data.synthetic.walk import make_walk
from ammnet_sparse.data.volumes.camera import NYU_CAMERA
from ammnet_sparse.data.volumes.labels import downsample_labels
from ammnet_sparse.scene_map.room import Room
from ammnet_sparse.scene_map.scene_map import SceneMap
from ammnet_sparse.scene_map.volume import MapVolume

WEIGHTS = "nyu_depth_w64"


def test_a_map_that_is_the_truth_is_right_at_the_voxels_of_every_frame() -> None:
    camera = (NYU_CAMERA.fx, NYU_CAMERA.fy, NYU_CAMERA.cx, NYU_CAMERA.cy)
    walk = make_walk(3, 0, views=2)
    room_map = SceneMap(SceneCompleter(WEIGHTS, intrinsics=camera, depth_scale=1), room=Room(np.eye(4)))
    voxels = []
    for view, pose in enumerate(walk.poses):
        completed = room_map.add(None, walk.images(view, noise="none").depth, pose)
        voxels.append(score_map.ScoredVoxels.of(completed, walk.scene, pose))
    origin, shape = np.array([-100 * VOXEL_SIZE, -100 * VOXEL_SIZE, FLOOR_OFFSET]), (200, 36, 200)
    fine = fill_voxels(walk.scene, origin, grid_shape=(4 * shape[0], 4 * shape[1], 4 * shape[2]))
    labels = downsample_labels(fine)
    truth = MapVolume(
        probabilities=np.stack([labels == label for label in range(12)]).astype(np.float16),
        num_views=(labels != 255).astype(np.uint16),
        origin=origin,
        poses=walk.poses,
        names=("0", "1"),
        map_from_given=np.eye(4),
    )
    for one, found in zip(voxels, score_map._labels_in(truth, voxels), strict=True):
        assert len(one.truth) > 2000
        np.testing.assert_array_equal(found, one.truth)
        assert 0 < one.is_hit.mean() < 1


def test_scores_are_reported_for_every_number_of_frames(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "scores.json"
    options = ["--rooms", "1", "--views", "2", "--checkpoint", WEIGHTS, "--noisy", "--json", str(out)]
    assert score_map.main(options) == 0
    assert WEIGHTS in capsys.readouterr().out
    rows = json.loads(out.read_text())
    assert [row["frames"] for row in rows] == [1, 2, 2]
    for row in rows:
        assert all(0 < row[name][1] <= 100 for name in ("alone", "map", "walk"))


def test_poses_are_disturbed_by_two_centimeters_and_a_degree() -> None:
    rng, pose = np.random.default_rng(0), make_walk(3, 0, views=1).poses[0]
    disturbed = [score_map._disturbed(pose, rng) for _ in range(200)]
    offsets = [np.linalg.norm(one[:3, 3] - pose[:3, 3]) for one in disturbed]
    angles = [np.degrees(np.arccos((np.trace(one[:3, :3].T @ pose[:3, :3]) - 1) / 2)) for one in disturbed]
    assert np.sqrt(np.mean(np.square(offsets))) == pytest.approx(0.02, rel=0.1)
    assert np.sqrt(np.mean(np.square(angles))) == pytest.approx(1.0, rel=0.1)
