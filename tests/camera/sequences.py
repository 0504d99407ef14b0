"""Writes the frames of a moving camera in every layout that sequences come in."""

import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ammnet_sparse.data.volumes.camera import Camera

CAMERA = Camera(52.0, 52.0, 31.5, 23.5)
"""Of images of 48 x 64."""
FIRST_TIME = 1305031102.0

Matrix = NDArray[np.float64]


class Frames:
    """Color [N, rows, columns, 3] uint8, depth [N, rows, columns] in meters, and poses [N, 4, 4] of a camera."""

    def __init__(self, color: NDArray[np.uint8], depth: NDArray[np.float32], poses: Matrix, camera: Camera) -> None:
        self.color, self.depth, self.poses, self.camera = color, depth, poses, camera

    def __len__(self) -> int:
        return len(self.poses)


def write_sequence(folder: Path, layout: str, frames: Frames) -> Path:
    """Writes frames as the layout has them; returns the folder, or the file of Record3D."""
    folder.mkdir(parents=True)
    return WRITERS[layout](folder, frames)


def _seven_scenes(folder: Path, frames: Frames) -> Path:
    for index in range(len(frames)):
        name = folder / f"frame-{index:06d}"
        _write_images(frames, index, Path(f"{name}.color.png"), Path(f"{name}.depth.png"), scale=1000)
        np.savetxt(f"{name}.pose.txt", frames.poses[index])
    np.savetxt(folder / "camera-intrinsics.txt", _matrix(frames.camera))
    return folder


def _tum(folder: Path, frames: Frames) -> Path:
    lists: dict[str, list[str]] = {"rgb": [], "depth": [], "groundtruth": []}
    for index, pose in enumerate(frames.poses):
        times = {"rgb": FIRST_TIME + index / 30, "depth": FIRST_TIME + index / 30 + 0.006}
        places = {kind: f"{kind}/{time:.6f}.png" for kind, time in times.items()}
        _write_images(frames, index, folder / places["rgb"], folder / places["depth"], scale=5000)
        for kind, time in times.items():
            lists[kind].append(f"{time:.6f} {places[kind]}")
        numbers = [times["rgb"] - 0.004, *pose[:3, 3], *quaternion(pose[:3, :3])]
        lists["groundtruth"].append(" ".join(f"{number:.9f}" for number in numbers))
    for kind, lines in lists.items():
        (folder / f"{kind}.txt").write_text("\n".join(["# of the benchmark", *lines]), encoding="utf-8")
    np.savetxt(folder / "intrinsics.txt", _matrix(frames.camera))
    return folder


def _scannet(folder: Path, frames: Frames) -> Path:
    """Color twice as large as depth."""
    (folder / "pose").mkdir()
    for index, pose in enumerate(frames.poses):
        color, depth = folder / "color" / f"{index}.jpg", folder / "depth" / f"{index}.png"
        _write_images(frames, index, color, depth, scale=1000, enlarged=2)
        np.savetxt(folder / "pose" / f"{index}.txt", pose)
    (folder / "intrinsic").mkdir()
    matrix = np.eye(4)
    matrix[:3, :3] = _matrix(frames.camera)
    np.savetxt(folder / "intrinsic" / "intrinsic_depth.txt", matrix)
    matrix[:2, :2] *= 2
    matrix[:2, 2] = 2 * matrix[:2, 2] + 0.5
    np.savetxt(folder / "intrinsic" / "intrinsic_color.txt", matrix)
    return folder


def _replica(folder: Path, frames: Frames) -> Path:
    for index in range(len(frames)):
        results = folder / "room" / "results"
        color, depth = results / f"frame{index:06d}.jpg", results / f"depth{index:06d}.png"
        _write_images(frames, index, color, depth, scale=6553.5)
    np.savetxt(folder / "room" / "traj.txt", frames.poses.reshape(-1, 16))
    rows, columns = frames.depth.shape[1:]
    c = frames.camera
    camera = {"w": columns, "h": rows, "fx": c.fx, "fy": c.fy, "cx": c.cx, "cy": c.cy, "scale": 6553.5}
    (folder / "cam_params.json").write_text(json.dumps({"camera": camera}), encoding="utf-8")
    return folder / "room"


def _open3d(folder: Path, frames: Frames) -> Path:
    lines = []
    for index, pose in enumerate(frames.poses):
        color = folder / "image" / f"{index + 1:06d}-{33333 * index:012d}.jpg"
        depth = folder / "depth" / f"{index + 1:06d}-{33333 * index + 9:012d}.png"
        _write_images(frames, index, color, depth, scale=1000)
        lines += [f"{index} {index} {index + 1}", *(" ".join(map(str, row)) for row in pose)]
    (folder / "trajectory.log").write_text("\n".join(lines), encoding="utf-8")
    c = frames.camera
    rows, columns = frames.depth.shape[1:]
    intrinsics = {"width": columns, "height": rows, "intrinsic_matrix": [c.fx, 0, 0, 0, c.fy, 0, c.cx, c.cy, 1]}
    (folder / "camera_intrinsic.json").write_text(json.dumps(intrinsics), encoding="utf-8")
    return folder


def _record3d(folder: Path, frames: Frames) -> Path:
    """Color four times as large as depth; camera axes with y up and z back."""
    import lzfse

    rows, columns = frames.depth.shape[1:]
    matrix = _matrix(frames.camera)
    matrix[:2, :2] *= 4
    matrix[:2, 2] = 4 * matrix[:2, 2] + 1.5
    poses = frames.poses @ np.diag([1.0, -1, -1, 1])
    metadata = {"K": matrix.T.ravel().tolist(), "w": 4 * columns, "h": 4 * rows, "dw": columns, "dh": rows}
    metadata["poses"] = [[*quaternion(pose[:3, :3]), *pose[:3, 3]] for pose in poses]
    path = folder / "recording.r3d"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata", json.dumps(metadata))
        for index in range(len(frames)):
            color = folder / "color.jpg"
            _enlarged(frames.color[index], 4).save(color)
            archive.write(color, f"rgbd/{index}.jpg")
            archive.writestr(f"rgbd/{index}.depth", lzfse.compress(frames.depth[index].astype("<f4").tobytes()))
    return path


WRITERS: dict[str, Callable[[Path, Frames], Path]] = {
    "7-Scenes": _seven_scenes,
    "TUM": _tum,
    "ScanNet": _scannet,
    "Replica": _replica,
    "folders": _open3d,
    "Record3D": _record3d,
}


def small_frames(count: int = 5) -> Frames:
    """Frames of 48 x 64 of a camera that moves 5 cm and turns 2 degrees with each: a slanted wall, colors of noise."""
    rng = np.random.default_rng(0)
    color = rng.integers(0, 256, (count, 48, 64, 3), dtype=np.uint8)
    slope = np.linspace(1.5, 2.0, 64) + np.linspace(0, 0.3, 48)[:, None]
    depth = np.round(slope + 0.05 * np.arange(count)[:, None, None], 2).astype(np.float32)
    poses = np.tile(np.eye(4), (count, 1, 1))
    for index, pose in enumerate(poses):
        angle = np.radians(2.0 * index)
        pose[:3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
        pose[:3, 3] = (0.05 * index, 0.1, 1.0)
    return Frames(color, depth, poses, CAMERA)


def quaternion(rotation: Matrix) -> list[float]:
    """x, y, z, w of a rotation, by the largest of the four."""
    r = rotation
    squares = np.array(
        [
            [1 + r[0, 0] - r[1, 1] - r[2, 2], r[0, 1] + r[1, 0], r[0, 2] + r[2, 0], r[2, 1] - r[1, 2]],
            [r[0, 1] + r[1, 0], 1 - r[0, 0] + r[1, 1] - r[2, 2], r[1, 2] + r[2, 1], r[0, 2] - r[2, 0]],
            [r[0, 2] + r[2, 0], r[1, 2] + r[2, 1], 1 - r[0, 0] - r[1, 1] + r[2, 2], r[1, 0] - r[0, 1]],
            [r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1], 1 + np.trace(r)],
        ]
    )
    best = squares[np.diag(squares).argmax()]
    return [float(value) for value in best / np.linalg.norm(best)]


def _matrix(camera: Camera) -> Matrix:
    return np.array([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]])


def _enlarged(color: NDArray[np.uint8], factor: int) -> Image.Image:
    return Image.fromarray(np.repeat(np.repeat(color, factor, axis=0), factor, axis=1))


def _write_images(frames: Frames, index: int, color: Path, depth: Path, *, scale: float, enlarged: int = 1) -> None:
    for path in (color, depth):
        path.parent.mkdir(parents=True, exist_ok=True)
    _enlarged(frames.color[index], enlarged).save(color)
    Image.fromarray(np.rint(frames.depth[index] * scale).astype(np.uint16)).save(depth)


def poses_of(frames: Sequence[object]) -> Matrix:
    """[N, 4, 4] of frames that have poses."""
    return np.stack([frame.pose for frame in frames])  # type: ignore[attr-defined]
