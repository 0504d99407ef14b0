"""A writer of SSCNet's raw files for tests: bit-rotated depth and run-length coded labels of a simple room."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ammnet_sparse.data.grid import IMAGE_SHAPE
from ammnet_sparse.data.synthetic.raycast import camera_pose
from ammnet_sparse.data.volumes.camera import NYU_CAMERA, own_frame_origin
from ammnet_sparse.data.volumes.labels import FINE_GRID_SHAPE

WALL_DISTANCE = 3.0
"""Meters from the camera, which stands at X = Y = 0, to the wall before it."""


def write_raw_frame(folder: Path, frame_id: str, *, chair_at: int = 100) -> tuple[Path, Path]:
    """Writes a room of a floor and a wall with a chair in the voxels; returns the paths of .png and .bin.

    The camera looks 20 degrees down from 1.3 m; the depth is whole millimeters.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pose = camera_pose(1.3, yaw=0.0, pitch=-0.35, roll=0.0).astype(np.float32)
    origin = own_frame_origin(pose).astype(np.float32)
    depth_path, label_path = folder / f"NYU{frame_id}_0000.png", folder / f"NYU{frame_id}_0000.bin"
    write_depth(depth_path, _room_depth(pose))
    labels = np.zeros(FINE_GRID_SHAPE, dtype=np.uint8)
    labels[:, :3] = 2
    wall = round((WALL_DISTANCE - float(origin[1])) / 0.02)
    labels[:, :, wall : wall + 2] = 3
    labels[:, :, wall + 2 :] = 255
    labels[chair_at : chair_at + 20, 3:45, 60:80] = 6  # raw chair
    write_labels(label_path, labels, pose=pose, origin=origin)
    return depth_path, label_path


def write_depth(path: Path, depth: NDArray[np.floating]) -> None:
    """Meters as the published png has them: millimeters, bits rotated left by 3."""
    millimeters = np.round(depth * 1000).astype(np.uint16)
    Image.fromarray((millimeters << np.uint16(3)) | (millimeters >> np.uint16(13))).save(path)


def write_labels(path: Path, labels: NDArray[np.uint8], *, pose: NDArray, origin: NDArray) -> None:
    flat = labels.reshape(-1)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(flat)) + 1])
    lengths = np.diff(np.concatenate([starts, [flat.size]]))
    pairs = np.stack([flat[starts], lengths], axis=1)
    header = np.concatenate([origin, pose.reshape(-1)])
    path.write_bytes(header.astype("<f4").tobytes() + pairs.astype("<u4").tobytes())


def _room_depth(pose: NDArray[np.float32]) -> NDArray[np.float64]:
    """Depth of the floor and of the wall, the nearer one, by the intrinsics of NYU."""
    v, u = np.mgrid[: IMAGE_SHAPE[0], : IMAGE_SHAPE[1]]
    camera = NYU_CAMERA
    rays = np.stack([(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, np.ones(u.shape)], axis=-1)
    world = rays @ pose[:3, :3].astype(np.float64).T
    with np.errstate(divide="ignore"):
        floor = np.where(world[..., 2] < 0, -1.3 / world[..., 2], np.inf)
        wall = WALL_DISTANCE / world[..., 1]
    return np.minimum(floor, wall)
