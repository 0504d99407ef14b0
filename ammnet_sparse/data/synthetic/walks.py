"""Sets of walks through synthetic rooms on disk: posed sequences in the layout of 7-Scenes, and each room's truth."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ammnet_sparse.data.grid import CLASS_NAMES, VOXEL_SIZE
from ammnet_sparse.data.synthetic.frame import Noise
from ammnet_sparse.data.synthetic.generate import generate_set
from ammnet_sparse.data.synthetic.walk import make_walk, room_labels
from ammnet_sparse.data.volumes.camera import NYU_CAMERA
from ammnet_sparse.files.writing import replacing_open

TRUTH_FILE = "truth.npz"


def generate_walks(
    folder: str | os.PathLike[str],
    *,
    rooms: int,
    views: int,
    seed: int,
    noise: Noise,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Generates rooms seen along a walk through each, unless ``folder`` holds them already.

    Every room is a folder 0001, 0002, ... with ``frame-NNNNNN.color.png``, ``.depth.png`` (16 bits, millimeters, 0
    invalid) and ``.pose.txt`` (4x4, camera to world, Z up, floor at 0), ``camera-intrinsics.txt`` (3x3), and
    ``truth.npz``: ``labels`` [X, height, Y] uint8 of the whole room (255 outside the walls), ``origin`` (world position
    of the outer corner of voxel (0, 0, 0)), ``voxel_size`` in meters and ``class_names``.

    Args:
        folder: of the set; created.
        rooms: how many.
        views: frames in each room.
        seed: the same seed gives the same files, whatever the number of workers.
        noise: "none", or "kinect" for depth like a Kinect's.
        workers: processes, as for ``generate_rooms``.
        progress: shows a progress bar.

    Returns:
        ``folder``.

    Raises:
        ValueError: parameters out of range.
        RoomsError: ``folder`` holds something else, or a room fails.
    """
    for name, value in (("rooms", rooms), ("views", views)):
        if value < 1:
            raise ValueError(f"{name}: expected 1 or more, found {value}")
    names = [_room_name(index) for index in range(rooms)]
    return generate_set(
        Path(folder),
        {"rooms": rooms, "views": views, "seed": seed, "noise": noise},
        folders=names,
        complete_with=[f"{name}/{TRUTH_FILE}" for name in names],
        make=_make_room,
        unit="room",
        workers=workers,
        progress=progress,
    )


def _make_room(folder: Path, parameters: dict[str, Any], index: int) -> None:
    room, walk = folder / _room_name(index), make_walk(parameters["seed"], index, views=parameters["views"])
    camera = NYU_CAMERA
    matrix = np.array([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]])
    _write_matrix(room / "camera-intrinsics.txt", matrix)
    for view, pose in enumerate(walk.poses):
        images = walk.images(view, noise=parameters["noise"])
        frame = f"frame-{view:06d}"
        _write_png(room / f"{frame}.color.png", images.image)
        _write_png(room / f"{frame}.depth.png", np.round(images.depth * 1000).astype(np.uint16))
        _write_matrix(room / f"{frame}.pose.txt", pose)
    labels, origin = room_labels(walk.scene)
    with replacing_open(room / TRUTH_FILE) as file:
        names = np.array(CLASS_NAMES)
        np.savez_compressed(file, labels=labels, origin=origin, voxel_size=VOXEL_SIZE, class_names=names)


def _write_png(path: Path, values: NDArray[Any]) -> None:
    with replacing_open(path) as file:
        Image.fromarray(values).save(file, format="PNG")


def _write_matrix(path: Path, matrix: NDArray[np.float64]) -> None:
    with replacing_open(path) as file:
        np.savetxt(file, matrix, fmt="%.9f", delimiter="\t")


def _room_name(index: int) -> str:
    return f"{index + 1:04d}"
