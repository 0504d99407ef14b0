"""Labeled meshes to training frames: voxels have the classes that pixels see, and what no frame sees is unknown."""

from pathlib import Path

import numpy as np
import pytest

from ammnet_sparse.camera.labeled_mesh import SPACING, read_label_numbers, read_labeled_mesh, voxel_votes
from ammnet_sparse.camera.mesh_sets import MeshPlan
from ammnet_sparse.data.grid import IGNORE_LABEL, UNMAPPED
from ammnet_sparse.data.set_info import SetInfo
from ammnet_sparse.files.errors import DataError
from tests.camera.mesh_room import BOX, CLASSES, FLOOR, FURNITURE, TABLE, WALL, write_frames, write_mesh

INFO = SetInfo(classes=CLASSES)  # type: ignore[arg-type]


@pytest.mark.parametrize(("of_faces", "text"), [(True, False), (False, False), (False, True)])
def test_meshes_of_every_kind_give_the_same_voxels(tmp_path: Path, of_faces: bool, text: bool) -> None:
    write_mesh(tmp_path / "room.ply", of_faces=of_faces, text=text)
    points = read_labeled_mesh(tmp_path / "room.ply", INFO)
    lows, highs = (np.array([box[side] for box in FURNITURE]) for side in range(2))
    for low, high, label in zip(lows, highs, (TABLE, BOX), strict=True):
        inside = ((points.positions > low + 0.1) & (points.positions < high + 1e-6)).all(axis=1)
        assert set(points.labels[inside]) == {label}
    # A grid at the room's corner, turned by a quarter: X is the room's -y, Y its x.
    transform = np.array([[0.0, -1, 0, 4.4], [1, 0, 0, 0.2], [0, 0, 1, 0.02], [0, 0, 0, 1]])
    found = voxel_votes(points, transform=transform, origin=np.zeros(3), num_classes=5)
    x, y = int((4.4 - 2.6) / 0.08), int((1.8 + 0.2) / 0.08)  # of the middle of the table
    assert found[x, int(0.82 / 0.08), y] == TABLE and found[x, 0, y] in (FLOOR, TABLE)
    assert found[x, 5, y] == 0 and found[int(0.4 / 0.08), 15, y] == WALL
    assert (found > 0).sum() > 3000


def test_samples_are_dense(tmp_path: Path) -> None:
    write_mesh(tmp_path / "room.ply")
    positions = read_labeled_mesh(tmp_path / "room.ply", INFO).positions
    floor = positions[(positions[:, 2] == 0) & (np.abs(positions[:, :2] - [2, 1]) < 0.5).all(axis=1)]
    distances = np.linalg.norm(
        floor[:, None, :2] - np.random.default_rng(0).uniform([1.6, 0.6], [2.4, 1.4], (50, 2)), axis=2
    )
    assert distances.min(axis=0).max() < SPACING


def test_points_and_numbers_of_another_list(tmp_path: Path) -> None:
    write_mesh(tmp_path / "room.ply", of_faces=False, numbers={FLOOR: 2, WALL: 1, TABLE: 14, BOX: 40})
    (tmp_path / "labels.yaml").write_text("floor: 2\nwall: 1\ntable: [7, 14]\n")
    numbers = read_label_numbers(tmp_path / "labels.yaml", INFO)
    assert numbers == {2: FLOOR, 1: WALL, 7: TABLE, 14: TABLE}
    points = read_labeled_mesh(tmp_path / "room.ply", INFO, numbers=numbers)
    assert set(points.labels.tolist()) == {FLOOR, WALL, TABLE, IGNORE_LABEL}
    with pytest.raises(DataError, match="room.ply.*14, 40"):
        read_labeled_mesh(tmp_path / "room.ply", INFO)
    (tmp_path / "labels.yaml").write_text("floor: 2\nlamp: 3\n")
    with pytest.raises(DataError, match="labels.yaml.*lamp"):
        read_label_numbers(tmp_path / "labels.yaml", INFO)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"solid room",
        b"ply\nformat binary_little_endian 1.0\nelement vertex 999999999\nproperty float x\nend_header\n",
        b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float y\nend_header\n1 2\n",
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "room.ply"
    path.write_bytes(content)
    with pytest.raises(DataError, match="room.ply"):
        read_labeled_mesh(path, INFO)


def test_millimeters_are_noticed(tmp_path: Path) -> None:
    write_mesh(tmp_path / "room.ply", text=True)
    lines = (tmp_path / "room.ply").read_text().replace("4.4", "4400").replace("2.5", "2500").replace("4\n", "4000\n")
    (tmp_path / "room.ply").write_text(lines)
    with pytest.raises(DataError, match="meters"):
        read_labeled_mesh(tmp_path / "room.ply", INFO)


def test_voxels_agree_with_the_pixels_that_hit_them(tmp_path: Path) -> None:
    labels = write_frames(tmp_path / "room")
    write_mesh(tmp_path / "room.ply")
    plan = MeshPlan(tmp_path / "room", tmp_path / "room.ply", tmp_path / "set", info=INFO)
    (ids,) = plan.find().lists.values()
    assert ids[0] == "room_frame-000000"
    for frame_id, seen in zip(ids[::2], labels[::2], strict=True):
        frame = plan.read(frame_id)
        hit = frame.mapping != UNMAPPED
        rows, columns = frame.mapping[hit] // 1280, frame.mapping[hit] % 640 // 2
        agree = frame.label[hit] == seen[rows, columns]
        assert agree.mean() > 0.93 and (frame.label[hit] > 0).mean() > 0.99
        free = (frame.tsdf > 0.999) & ~hit
        assert (frame.label[free] == 0).mean() > 0.98
        behind = (frame.tsdf < -0.5) & (frame.label_weight > 0)
        assert (frame.label[behind] == IGNORE_LABEL).any() and (frame.label[behind] == 0).sum() > 200
    whole = MeshPlan(plan.source, plan.mesh, plan.out, info=INFO, unknown="empty").read(ids[0])
    assert not (whole.label == IGNORE_LABEL).any()
