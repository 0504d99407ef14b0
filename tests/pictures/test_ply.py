"""PLY files: what another program reads from them is the scene, in meters, with z up and faces turned outwards."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from plyfile import PlyData

from ammnet_sparse.data.grid import CLASS_NAMES, CLASSES, IGNORE_LABEL, VOXEL_SIZE
from ammnet_sparse.pictures.ply import write_ply

SHAPE = (6, 4, 5)
FLOOR, WALL, CHAIR = (CLASS_NAMES.index(name) for name in ("floor", "wall", "chair"))


def read(path: Path) -> tuple[NDArray, NDArray, NDArray | None, PlyData]:
    """Positions [N, 3], colors [N, 3] and faces [M, 4] of a file."""
    ply = PlyData.read(str(path))
    vertex = ply["vertex"]
    position = np.stack([vertex[name] for name in "xyz"], axis=1).astype(float)
    color = np.stack([vertex[name] for name in ("red", "green", "blue")], axis=1)
    faces = np.stack(list(ply["face"]["vertex_indices"])) if "face" in ply and len(ply["face"].data) else None
    return position, color, faces, ply


def one_voxel() -> NDArray[np.uint8]:
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[5, 1, 3] = CHAIR
    return labels


def test_points_stand_in_the_middle_of_their_voxels_with_z_up(tmp_path: Path) -> None:
    labels = one_voxel()
    labels[0, 0, 0] = IGNORE_LABEL
    write_ply(tmp_path / "points.ply", labels, origin=(1.0, 2.0, -0.05))
    position, color, faces, ply = read(tmp_path / "points.ply")
    expected = np.array([[1.0 + 5.5 * VOXEL_SIZE, 2.0 + 3.5 * VOXEL_SIZE, -0.05 + 1.5 * VOXEL_SIZE]])
    np.testing.assert_allclose(position, expected, atol=1e-6)
    assert color.tolist() == [list(CLASSES[CHAIR].color)]
    assert ply["vertex"]["label"].tolist() == [CHAIR]
    assert faces is None


def test_a_cube_has_eight_corners_and_six_faces_turned_outwards(tmp_path: Path) -> None:
    write_ply(tmp_path / "cube.ply", one_voxel(), as_cubes=True)
    position, _, faces, ply = read(tmp_path / "cube.ply")
    assert faces is not None
    assert (len(position), len(faces)) == (8, 6)
    low = np.array([5, 3, 1]) * VOXEL_SIZE
    np.testing.assert_allclose(position.min(0), low, atol=1e-6)
    np.testing.assert_allclose(position.max(0), low + VOXEL_SIZE, atol=1e-6)
    middle = low + VOXEL_SIZE / 2
    for face in faces:
        a, b, c, d = position[face]
        normal = np.cross(b - a, c - a)
        assert np.dot(normal, (a + b + c + d) / 4 - middle) > 0
        np.testing.assert_allclose(a - b, d - c, atol=1e-6)
    assert ply["face"]["red"].tolist() == [CLASSES[CHAIR].color[0]] * 6


def test_faces_between_drawn_voxels_are_left_out_and_corners_shared_within_a_class(tmp_path: Path) -> None:
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[1:3, 0, 0] = FLOOR
    write_ply(tmp_path / "pair.ply", labels, as_cubes=True)
    position, _, faces, _ = read(tmp_path / "pair.ply")
    assert faces is not None
    assert (len(position), len(faces)) == (12, 10)
    labels[2, 0, 0] = WALL
    write_ply(tmp_path / "two_classes.ply", labels, as_cubes=True)
    position, color, faces, _ = read(tmp_path / "two_classes.ply")
    assert faces is not None
    # A corner between two classes has no one color, so each has its own.
    assert (len(position), len(faces)) == (16, 10)
    for face in faces:
        assert len(np.unique(color[face], axis=0)) == 1


def test_surface_of_a_random_scene_is_closed(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    labels = np.where(rng.random(SHAPE) < 0.4, CHAIR, 0).astype(np.uint8)
    write_ply(tmp_path / "random.ply", labels, as_cubes=True)
    position, _, faces, _ = read(tmp_path / "random.ply")
    assert faces is not None
    volume = 0.0
    for face in faces:
        a, b, c, d = position[face]
        volume += np.dot(a, np.cross(b, c)) / 6 + np.dot(a, np.cross(c, d)) / 6
    assert volume == pytest.approx(np.count_nonzero(labels) * VOXEL_SIZE**3, rel=1e-4)


@pytest.mark.parametrize("as_cubes", [False, True])
def test_an_empty_scene_is_a_valid_file(tmp_path: Path, as_cubes: bool) -> None:
    write_ply(tmp_path / "empty.ply", np.zeros(SHAPE, dtype=np.uint8), as_cubes=as_cubes)
    position, _, faces, _ = read(tmp_path / "empty.ply")
    assert len(position) == 0
    assert faces is None


def test_bad_volumes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="labels"):
        write_ply(tmp_path / "x.ply", np.full(SHAPE, 12, dtype=np.uint8))
    with pytest.raises(ValueError, match="mask"):
        write_ply(tmp_path / "x.ply", one_voxel(), mask=np.ones((2, 2, 2), dtype=np.bool_))
    assert not (tmp_path / "x.ply").exists()


def test_hidden_voxels_open_the_faces_behind_them(tmp_path: Path) -> None:
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[1:3, 0, 0] = FLOOR
    mask = np.ones(SHAPE, dtype=np.bool_)
    mask[2] = False
    write_ply(tmp_path / "masked.ply", labels, mask=mask, as_cubes=True)
    position, _, faces, _ = read(tmp_path / "masked.ply")
    assert faces is not None
    assert (len(position), len(faces)) == (8, 6)
    assert position[:, 0].max() == pytest.approx(2 * VOXEL_SIZE)
