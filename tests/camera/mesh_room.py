"""A room of boxes, its labeled mesh, and posed frames of it as 7-Scenes has them, for tests of sets from meshes."""

from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image
from plyfile import PlyData, PlyElement

from ammnet_sparse.data.synthetic.raycast import camera_pose

CLASSES = {
    "empty": [0, 0, 0],
    "floor": [40, 160, 4],
    "wall": [158, 216, 229],
    "table": [30, 119, 181],
    "box": [255, 127, 12],
}
FLOOR, WALL, TABLE, BOX = range(1, 5)
CAMERA = (260.0, 260.0, 159.5, 119.5)
"""Of images of 240 x 320."""
SHELL = (np.array([0.0, 0.0, 0.0]), np.array([4.4, 4.0, 2.5]))
FURNITURE = (
    (np.array([1.2, 2.2, 0.0]), np.array([2.4, 3.0, 0.8]), TABLE),
    (np.array([3.0, 3.2, 0.0]), np.array([3.5, 3.7, 1.0]), BOX),
)
_SIDES = [(axis, side) for axis in range(3) for side in range(2)]
Array = NDArray[np.float64]


def render(pose: Array) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Depth [240, 320] in meters and the class of each pixel."""
    rows, columns = np.mgrid[:240, :320]
    fx, fy, cx, cy = CAMERA
    rays = np.stack([(columns - cx) / fx, (rows - cy) / fy, np.ones(rows.shape)], axis=-1) @ pose[:3, :3].T
    start = pose[:3, 3]
    with np.errstate(divide="ignore"):
        ends = np.stack([(bound - start) / rays for bound in SHELL])  # the camera is inside
        out = ends.max(axis=0)
        depth = out.min(axis=-1)
        label = np.where((out.argmin(axis=-1) == 2) & (rays[..., 2] < 0), FLOOR, WALL).astype(np.uint8)
        for low, high, name in FURNITURE:
            ends = np.sort(np.stack([(low - start) / rays, (high - start) / rays]), axis=0)
            enters, leaves = ends[0].max(axis=-1), ends[1].min(axis=-1)
            is_hit = (enters < leaves) & (enters > 0) & (enters < depth)
            depth, label = np.where(is_hit, enters, depth), np.where(is_hit, np.uint8(name), label)
    return depth.astype(np.float32), label


def write_frames(folder: Path, *, count: int = 6, first_yaw: float = -0.5) -> list[NDArray[np.uint8]]:
    """Frames of a camera that walks along the near wall and turns; returns the class of each pixel."""
    folder.mkdir(parents=True)
    labels = []
    for index in range(count):
        share = index / max(count - 1, 1)
        pose = camera_pose(1.4, yaw=first_yaw + share, pitch=-0.4, roll=0.0)
        pose[:2, 3] = [1.0 + 2.4 * share, 0.5]
        depth, label = render(pose)
        labels.append(label)
        name = f"{folder}/frame-{index:06d}"
        colors = np.array(list(CLASSES.values()), dtype=np.uint8)
        Image.fromarray(colors[label]).save(f"{name}.color.png")
        Image.fromarray(np.round(1000 * depth).astype(np.uint16)).save(f"{name}.depth.png")
        np.savetxt(f"{name}.pose.txt", pose)
    fx, fy, cx, cy = CAMERA
    np.savetxt(folder / "camera-intrinsics.txt", [[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    return labels


def write_mesh(path: Path, *, of_faces: bool = True, text: bool = False, numbers: dict[int, int] | None = None) -> None:
    """The surfaces of the room as triangles, with a label for every face, or for every vertex."""
    corners, labels = _quads()
    labels = np.array([(numbers or {}).get(int(label), label) for label in labels], dtype=np.uint16)
    vertex = np.zeros(4 * len(corners), dtype=[("x", "f4"), ("y", "f4"), ("z", "f4"), ("red", "u1"), ("label", "u2")])
    for axis, name in enumerate("xyz"):
        vertex[name] = corners.reshape(-1, 3)[:, axis]
    vertex["label"] = labels.repeat(4)
    first = 4 * np.arange(len(corners))[:, None, None]
    face = np.zeros(2 * len(corners), dtype=[("vertex_indices", "i4", (3,)), ("label", "u2")])
    face["vertex_indices"] = (first + np.array([[0, 1, 2], [0, 2, 3]])).reshape(-1, 3)
    face["label"] = labels.repeat(2)
    kept = (vertex[["x", "y", "z"]], face) if of_faces else (vertex, face[["vertex_indices"]])
    elements = [
        PlyElement.describe(np.array(one.tolist(), dtype=_packed(one)), name)
        for one, name in zip(kept, ("vertex", "face"), strict=True)
    ]
    PlyData(elements, text=text).write(str(path))


def write_classes(path: Path) -> None:
    path.write_text(yaml.safe_dump({"classes": CLASSES}, sort_keys=False))


def _packed(values: NDArray[np.void]) -> list[tuple]:
    assert values.dtype.names is not None and values.dtype.fields is not None
    return [(name, values.dtype[name].base, values.dtype[name].shape) for name in values.dtype.names]


def _quads() -> tuple[Array, NDArray[np.int64]]:
    """[N, 4, 3] corners of the sides of shell and furniture, and their classes."""
    quads, labels = [], []
    for low, high, name in ((*SHELL, WALL), *FURNITURE):
        for axis, side in _SIDES:
            one, other = (index for index in range(3) if index != axis)
            quad = np.tile(low, (4, 1))
            quad[:, axis] = (low, high)[side][axis]
            quad[[1, 2], one], quad[[2, 3], other] = high[one], high[other]
            quads.append(quad)
            labels.append(FLOOR if name == WALL and axis == 2 and side == 0 else name)
    return np.stack(quads), np.array(labels)
