"""Mapping, TSDF, labels and weight: exact on a published raw frame, and against plain loops on a small grid."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ammnet_sparse.data.grid import GRID_SHAPE, UNMAPPED
from ammnet_sparse.data.raw.frames import read_depth_values, read_raw_labels
from ammnet_sparse.data.synthetic.raycast import camera_pose
from ammnet_sparse.data.volumes import tsdf_operators
from ammnet_sparse.data.volumes.camera import Camera, CameraView, own_frame_origin
from ammnet_sparse.data.volumes.labels import FINE_GRID_SHAPE, classes_from_raw, downsample_labels, label_weight_of
from ammnet_sparse.data.volumes.tsdf import (
    flip_tsdf,
    mapping_from_depth,
    tsdf_from_depth,
    unflip_tsdf,
)
from ammnet_sparse.files.errors import DataError
from tests.ops.support import Replaced

SMALL_GRID = (5, 4, 6)
SMALL_CAMERA = Camera(30.0, 31.0, 15.7, 11.2)
ORIGIN = np.array([-0.2, 0.75, 0.95])


@pytest.fixture
def small_depth() -> NDArray[np.float32]:
    """24 x 32 pixels about 1 m away with holes, and pixels that are too near or too far for the TSDF."""
    rng = np.random.default_rng(3)
    depth = rng.uniform(0.85, 1.1, (24, 32)).astype(np.float32)
    depth[rng.random(depth.shape) < 0.1] = 0.0
    depth[10, 10:14] = 0.4, 8.5, np.nan, np.inf
    return depth


@pytest.fixture
def small_pose() -> NDArray[np.float64]:
    return camera_pose(1.1, yaw=0.12, pitch=-0.08, roll=0.05)


def world_point(depth: float, u: int, v: int, pose: NDArray[np.float64]) -> NDArray[np.float64]:
    camera = SMALL_CAMERA
    point = np.array([(u - camera.cx) * depth / camera.fx, (v - camera.cy) * depth / camera.fy, depth])
    return pose[:3, :3] @ point + pose[:3, 3]


def mapping_reference(
    depth: NDArray[np.float32], pose: NDArray[np.float64], *, size: float, shape: tuple[int, int, int]
) -> NDArray[np.int32]:
    mapping = np.full(shape, UNMAPPED, dtype=np.int32)
    for v, u in itertools.product(*map(range, depth.shape)):
        if np.isfinite(depth[v, u]) and depth[v, u] > 0:
            x, y, z = np.floor((world_point(float(depth[v, u]), u, v, pose) - ORIGIN) / size).astype(int)
            if 0 <= x < shape[0] and 0 <= z < shape[1] and 0 <= y < shape[2]:
                mapping[x, z, y] = max(mapping[x, z, y], v * depth.shape[1] + u)
    return mapping


def tsdf_reference(depth: NDArray[np.float32], pose: NDArray[np.float64]) -> NDArray[np.float64]:
    shape = tuple(4 * size for size in SMALL_GRID)
    surface = np.argwhere(mapping_reference(depth, pose, size=0.02, shape=shape) != UNMAPPED)
    fine = np.zeros(shape)
    for x, h, y in itertools.product(*map(range, shape)):
        world = ORIGIN + 0.02 * np.array([x, y, h])
        a, b, z = pose[:3, :3].T @ (world - pose[:3, 3])
        if z <= 0:
            continue
        u = round(a / z * SMALL_CAMERA.fx + SMALL_CAMERA.cx)
        v = round(b / z * SMALL_CAMERA.fy + SMALL_CAMERA.cy)
        if 0 <= v < depth.shape[0] and 0 <= u < depth.shape[1] and 0.5 <= depth[v, u] <= 8.0:
            distance = np.sqrt(((surface - (x, h, y)) ** 2).sum(1).min())
            fine[x, h, y] = (1 if depth[v, u] - z > -1e-4 else -1) * min(1.0, distance / 12)
    blocks = fine.reshape(SMALL_GRID[0], 4, SMALL_GRID[1], 4, SMALL_GRID[2], 4)
    return blocks.mean((1, 3, 5))


def downsample_reference(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    x, h, y = (size // 4 for size in labels.shape)
    classes = np.empty((x, h, y), dtype=np.uint8)
    for i, k, j in itertools.product(range(x), range(h), range(y)):
        counts = np.bincount(labels[4 * i : 4 * i + 4, 4 * k : 4 * k + 4, 4 * j : 4 * j + 4].ravel(), minlength=256)
        is_mostly_void = counts[0] + counts[255] > 0.95 * 64
        classes[i, k, j] = np.argmax(counts) if is_mostly_void else 1 + np.argmax(counts[1:255])
    return classes


def test_mapping_equals_loop(small_depth: NDArray[np.float32], small_pose: NDArray[np.float64]) -> None:
    found = mapping_from_depth(small_depth, view=CameraView(SMALL_CAMERA, small_pose, ORIGIN), grid_shape=SMALL_GRID)
    expected = mapping_reference(small_depth, small_pose, size=0.08, shape=SMALL_GRID)
    assert (expected != UNMAPPED).sum() > 20
    np.testing.assert_array_equal(found, expected.reshape(-1))


def test_tsdf_equals_loop(small_depth: NDArray[np.float32], small_pose: NDArray[np.float64]) -> None:
    found = tsdf_from_depth(small_depth, view=CameraView(SMALL_CAMERA, small_pose, ORIGIN), grid_shape=SMALL_GRID)
    expected = tsdf_reference(small_depth, small_pose).reshape(-1)
    assert expected.min() < -0.1 and expected.max() > 0.1
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("threads", [1, 3])
def test_kernels_give_the_bits_of_the_loops_with_any_number_of_threads(threads: int) -> None:
    generator = np.random.default_rng(5)
    row, column = np.mgrid[:480, :640]
    depth = 2.5 + 1.2 * np.sin(column / 70) + 0.5 * np.cos(row / 50) + generator.normal(0, 0.01, (480, 640))
    depth[generator.random(depth.shape) < 0.1] = 0
    pose = camera_pose(1.4, yaw=0.4, pitch=-0.3, roll=0.05)
    view = CameraView.of_own_frame(Camera(518.9, 519.5, 325.6, 253.7), pose)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = mapping_from_depth(depth, view=view), tsdf_from_depth(depth, view=view)
    finally:
        torch.set_num_threads(before)
    with Replaced(
        {"map_depth": tsdf_operators.map_depth_reference, "tsdf_of_depth": tsdf_operators.tsdf_of_depth_reference}
    ) as loops:
        expected = mapping_from_depth(depth, view=view), tsdf_from_depth(depth, view=view)
    assert loops.calls == 2
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1].view(np.int32), expected[1].view(np.int32))


def test_tsdf_without_any_depth_is_unobserved(small_pose: NDArray[np.float64]) -> None:
    nothing = np.zeros((24, 32), dtype=np.float32)
    tsdf = tsdf_from_depth(nothing, view=CameraView(SMALL_CAMERA, small_pose, ORIGIN), grid_shape=SMALL_GRID)
    assert tsdf.dtype == np.float32 and not tsdf.any()


def test_downsampling_equals_loop() -> None:
    rng = np.random.default_rng(11)
    labels = rng.choice([0, 255, 1, 5, 11], p=[0.6, 0.34, 0.02, 0.02, 0.02], size=(16, 12, 20)).astype(np.uint8)
    labels[:8] = rng.choice([0, 3, 4, 255], size=(8, 12, 20))
    found = downsample_labels(labels)
    np.testing.assert_array_equal(found, downsample_reference(labels))
    assert set(np.unique(found)) >= {0, 3, 4}


def test_raw_labels_become_classes() -> None:
    raw = np.array([0, 1, 5, 16, 33, 36, 255], dtype=np.uint8)
    assert classes_from_raw(raw).tolist() == [0, 1, 11, 9, 9, 11, 255]
    with pytest.raises(ValueError, match="labels"):
        classes_from_raw(np.array([37], dtype=np.uint8))
    with pytest.raises(ValueError, match="classes_from_raw"):
        downsample_labels(np.full((4, 4, 4), 30, dtype=np.uint8))


def test_flipped_convention_and_back() -> None:
    tsdf = np.array([1.0, 0.4, 0.0005, 0.0, -0.0005, -0.4, -1.0], dtype=np.float32)
    flipped = flip_tsdf(tsdf)
    # Unobserved space becomes free space far away, as in SSCNet's source; or a surface, where that is asked for.
    np.testing.assert_allclose(flipped, [0.001, 0.6, 0.9995, 0.001, 0.9995, -0.6, -0.001], atol=1e-6)
    np.testing.assert_allclose(unflip_tsdf(flipped), [1.0, 0.4, 0.0005, 1.0, 0.0005, -0.4, -1.0], atol=1.001e-3)
    as_surface = flip_tsdf(tsdf, unobserved="surface")
    np.testing.assert_allclose(as_surface, [0.001, 0.6, 0.9995, 1.0, 0.9995, -0.6, -0.001], atol=1e-6)
    np.testing.assert_allclose(unflip_tsdf(as_surface), tsdf, atol=1.001e-3)
    with pytest.raises(ValueError, match="unobserved"):
        flip_tsdf(tsdf, unobserved="empty")  # type: ignore[arg-type]


def test_label_weight_rule() -> None:
    label = np.array([0, 0, 5, 11, 255, 255], dtype=np.uint8)
    tsdf = np.array([-0.5, -0.6, 1.0, -1.0, -0.4, -0.9], dtype=np.float32)
    assert label_weight_of(label, tsdf).tolist() == [0, 1, 1, 1, 0, 1]


def test_bad_arguments_are_named(small_depth: NDArray[np.float32]) -> None:
    with pytest.raises(ValueError, match="depth"):
        mapping_from_depth(
            np.ones((24, 32), dtype=np.uint16), view=CameraView(SMALL_CAMERA, np.eye(4), ORIGIN), grid_shape=SMALL_GRID
        )
    with pytest.raises(ValueError, match="pose"):
        CameraView(SMALL_CAMERA, np.full((4, 4), math.nan), ORIGIN)
    with pytest.raises(ValueError, match="pose"):
        CameraView(SMALL_CAMERA, 2 * np.eye(4), ORIGIN)
    with pytest.raises(ValueError, match="origin"):
        CameraView(SMALL_CAMERA, np.eye(4), np.array([0.0, math.inf, 0.0]))
    with pytest.raises(ValueError, match="Camera"):
        Camera(0.0, 500.0, 320.0, 240.0)


def write_raw_labels(path: Path, pairs: list[tuple[int, int]]) -> None:
    header = np.concatenate([[1.0, 2.0, -0.05], np.eye(4).ravel()]).astype("<f4")
    path.write_bytes(header.tobytes() + np.array(pairs, dtype="<u4").tobytes())


def test_raw_labels_are_read(tmp_path: Path) -> None:
    total = int(np.prod(FINE_GRID_SHAPE))
    write_raw_labels(tmp_path / "whole.bin", [(255, 240), (3, total - 240)])
    raw = read_raw_labels(tmp_path / "whole.bin")
    assert raw.labels.shape == (240, 144, 240) and raw.labels.dtype == np.uint8
    assert (raw.labels[0, 0] == 255).all() and raw.labels[0, 1, 0] == 3
    np.testing.assert_allclose(raw.origin, [1.0, 2.0, -0.05], atol=1e-7)

    write_raw_labels(tmp_path / "short.bin", [(0, total - 2), (7, 1)])
    short = read_raw_labels(tmp_path / "short.bin")
    assert short.labels[-1, -1, -2:].tolist() == [7, 7] and "short.bin" in short.note


def test_broken_raw_files_are_refused(tmp_path: Path) -> None:
    total = int(np.prod(FINE_GRID_SHAPE))
    path = tmp_path / "broken.bin"
    write_raw_labels(path, [(0, total - 2)])
    with pytest.raises(DataError, match=r"broken\.bin"):
        read_raw_labels(path)
    write_raw_labels(path, [(40, total)])
    with pytest.raises(DataError, match=r"broken\.bin"):
        read_raw_labels(path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DataError, match="truncated"):
        read_raw_labels(path)
    (tmp_path / "depth.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"depth\.png"):
        read_depth_values(tmp_path / "depth.png")


def test_grid_of_an_own_frame_lies_before_the_camera() -> None:
    pose = camera_pose(1.5, yaw=0.0, pitch=0.0, roll=0.0)
    origin = own_frame_origin(pose)
    np.testing.assert_allclose(origin, [-2.4, 1.0, -0.05], atol=1e-12)
    assert GRID_SHAPE == (60, 36, 60)
