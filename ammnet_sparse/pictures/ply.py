"""Completed scenes as PLY files for MeshLab, CloudCompare and Blender: colored points or cubes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from plyfile import PlyData, PlyElement

from ammnet_sparse.data.set_info import NYU, SetInfo
from ammnet_sparse.files.writing import replacing_open
from ammnet_sparse.pictures.comparison import check_shape, check_volume, class_colors, is_occupied

_COLOR_FIELDS = [("red", "u1"), ("green", "u1"), ("blue", "u1")]
_VERTEX_TYPE = np.dtype([("x", "<f4"), ("y", "<f4"), ("z", "<f4"), *_COLOR_FIELDS, ("label", "u1")])
_FACE_TYPE = np.dtype([("vertex_indices", "<i4", (4,)), *_COLOR_FIELDS])


def write_ply(
    path: str | Path,
    labels: NDArray[np.uint8],
    *,
    mask: NDArray[np.bool_] | None = None,
    as_cubes: bool = False,
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0),
    info: SetInfo = NYU,
) -> Path:
    """Writes the occupied voxels in meters, in world axes: x lateral, y forward, z up (a right-handed triple).

    Returns the file's path.

    Points are the centers of their voxels. Cubes have only the faces towards empty space or towards a voxel
    that is not drawn; the faces of one class share their corners. Both carry the color of the class and, as property
    ``label``, its number. An empty scene gives a valid file without vertices.

    Args:
        path: file to write, binary little-endian PLY; an existing one is replaced atomically.
        labels: [X, H, Y] uint8, a class; 0 and 255 are not drawn.
        mask: [X, H, Y] bool, the voxels to draw, for instance the scored ones; None: all.
        as_cubes: a mesh of quadrilaterals instead of points.
        origin: world (x, y, z) in meters of the outer corner of voxel (0, 0, 0).
        info: the set, which has colors, names (listed in the file's comments if they are not NYU's) and voxel size.

    Raises:
        ValueError: labels or mask of another shape or type.
        OSError: the file cannot be written.
    """
    check_volume("labels", labels, labels.shape, info=info)
    drawn = is_occupied(labels)
    if mask is not None:
        check_shape("mask", mask, labels.shape)
        drawn &= mask.astype(np.bool_)
    corners: NDArray[Any]
    faces: NDArray[np.int64] | None
    if as_cubes:
        corners, corner_labels, faces = voxel_surface(labels, drawn)
    else:
        corners, corner_labels, faces = np.argwhere(drawn) + 0.5, labels[drawn], None
    elements = [PlyElement.describe(_vertices(corners, corner_labels, origin, info), "vertex")]
    if faces is not None:
        elements.append(PlyElement.describe(_faces(faces, corner_labels, info), "face"))
    comments = ["semantic scene completion, meters, z up"]
    if info.classes != NYU.classes:
        comments.append("labels: " + ", ".join(f"{label} {name}" for label, name in enumerate(info.classes)))
    with replacing_open(path) as file:
        PlyData(elements, byte_order="<", comments=comments).write(file)
    return Path(path)


def _vertices(
    voxel_positions: NDArray[Any], labels: NDArray[np.uint8], origin: tuple[float, float, float], info: SetInfo
) -> NDArray[np.void]:
    """Vertices at positions [N, 3] in voxels along (X, height, Y)."""
    vertices = np.empty(len(labels), dtype=_VERTEX_TYPE)
    for name, axis, start in zip("xyz", (0, 2, 1), origin, strict=True):
        vertices[name] = start + info.voxel_size * voxel_positions[:, axis]
    _paint(vertices, labels, info)
    vertices["label"] = labels
    return vertices


def _faces(corners: NDArray[np.int64], corner_labels: NDArray[np.uint8], info: SetInfo) -> NDArray[np.void]:
    faces = np.empty(len(corners), dtype=_FACE_TYPE)
    faces["vertex_indices"] = corners
    _paint(faces, corner_labels[corners[:, 0]], info)
    return faces


def _paint(elements: NDArray[np.void], labels: NDArray[np.uint8], info: SetInfo) -> None:
    for (name, _), channel in zip(_COLOR_FIELDS, class_colors(labels, info).T, strict=True):
        elements[name] = channel


def voxel_surface(
    labels: NDArray[np.uint8], drawn: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64]]:
    """Corners [N, 3] in voxels, their classes [N], and the visible faces [M, 4] as indices of corners.

    Seen from outside, the corners of a face run counter-clockwise in world axes.
    """
    corners, classes = [], []
    for axis, side, mask in visible_faces(drawn):
        corners.append(np.argwhere(mask)[:, None] + face_corners(axis, side))
        classes.append(labels[mask])
    return shared_corners(np.concatenate(corners), np.concatenate(classes), shape=labels.shape)


def shared_corners(
    corners: NDArray[np.int64], classes: NDArray[np.uint8], *, shape: tuple[int, ...]
) -> tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64]]:
    """Corners [M, 4, 3] of faces with classes [M] as unique ones [N, 3], their classes [N], and indices [M, 4] of them.

    Faces of different classes share no corner. ``shape`` is the grid's; flat keys take a twentieth of the time of rows.
    """
    limits = (*(length + 1 for length in shape), 256)
    keys = np.ravel_multi_index((*corners.reshape(-1, 3).T, np.repeat(classes, 4)), limits)
    unique, index = np.unique(keys, return_inverse=True)
    *places, found = np.unravel_index(unique, limits)
    return np.stack(places, axis=1), found.astype(np.uint8), index.reshape(-1, 4)


def visible_faces(
    drawn: NDArray[np.bool_], *, shell: NDArray[np.bool_] | None = None, known: NDArray[np.bool_] | None = None
) -> Iterator[tuple[int, int, NDArray[np.bool_]]]:
    """Yields each axis and side of a voxel's faces with [X, H, Y] bool, the drawn voxels whose face there is visible.

    Args:
        drawn: [X, H, Y] bool.
        shell: [X, H, Y] bool, the voxels whose faces are visible from voxels in ``known`` only. The others are visible
            from all voxels that are not drawn, and from the outside of the grid.
        known: [X, H, Y] bool; needed with ``shell``.
    """
    free = np.pad(~drawn, 1, constant_values=True)
    inside = np.pad(drawn if known is None else known, 1)
    for axis in range(3):
        for side in (0, 1):
            neighbor = tuple(
                slice(1 + (2 * side - 1) * (a == axis), n + 1 + (2 * side - 1) * (a == axis))
                for a, n in enumerate(drawn.shape)
            )
            mask = drawn & free[neighbor]
            yield axis, side, mask if shell is None else mask & (inside[neighbor] | ~shell)


def face_corners(axis: int, side: int) -> NDArray[np.int64]:
    """The four corners [4, 3] of a face of the unit cube; ``side`` 1 faces along ``axis``, 0 against it."""
    first, second = (axis + 1) % 3, (axis + 2) % 3
    corners = np.zeros((4, 3), dtype=np.int64)
    corners[:, axis] = side
    corners[:, first], corners[:, second] = (0, 1, 1, 0), (0, 0, 1, 1)
    # (X, height, Y) is a left-handed triple, so this order is clockwise for a face towards its axis.
    return corners[::-1] if side else corners
