"""A labeled mesh or point cloud of a room in a PLY file, and the class of each voxel by it."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from plyfile import PlyData, PlyElement

from ammnet_sparse.data.grid import GRID_SHAPE, IGNORE_LABEL, VOXEL_SIZE
from ammnet_sparse.data.set_info import SetInfo
from ammnet_sparse.files.content import read_text
from ammnet_sparse.files.errors import DataError, abbreviated, reason
from ammnet_sparse.files.yaml_text import YamlProblem, parse_yaml, short

SPACING = VOXEL_SIZE / 4
"""Meters between the samples of a triangle, at most."""
_LABELS = ("label", "labels", "class", "semantic")
"""Names of the property that holds the number of a class, without ``scalar_``, which CloudCompare puts before them."""
_MOST_SAMPLES = 2 * 10**7
_LONGEST_HEADER = 2**16
Points = NDArray[np.float32]


@dataclasses.dataclass(frozen=True, eq=False)
class LabeledPoints:
    """Points on the surfaces of a room.

    Attributes:
        positions: [N, 3] meters, in the world of the file.
        labels: [N] uint8, a class of the set, or 255 for a surface without one.
    """

    positions: Points
    labels: NDArray[np.uint8]


def read_label_numbers(path: Path, info: SetInfo) -> dict[int, int]:
    """The class of each number of a mesh, by a YAML file of class names, each with a number or a list of numbers.

    Raises:
        DataError: not such a file, a name that is not a class of the set, or a number given twice.
    """
    what, advice = "names of classes with the numbers that the mesh has for them", "correct the file"
    try:
        values = parse_yaml(read_text(path, what=what, advice=advice))
        if not isinstance(values, dict):
            raise YamlProblem(short(values))
        classes: dict[int, int] = {}
        for name, given in values.items():
            if name not in info.class_names:
                raise YamlProblem(f"{short(name)}, which is none of {', '.join(info.class_names)}")
            for number in given if isinstance(given, list) else [given]:
                if type(number) is not int or number in classes:
                    raise YamlProblem(f"{short(number)} of {name}, which is no number or there twice")
                classes[number] = info.class_names.index(name)
    except YamlProblem as error:
        raise DataError.about(path, expected=what, found=str(error), advice=advice) from error
    return classes


def read_labeled_mesh(path: Path, info: SetInfo, *, numbers: Mapping[int, int] | None = None) -> LabeledPoints:
    """The points of a cloud, or samples of the triangles of a mesh, with their classes.

    Labels belong to vertices or to faces: a property ``label``, ``class`` or ``semantic``. A sample has the label of
    the nearest vertex.

    Args:
        path: PLY, ascii or binary.
        info: the classes of the set.
        numbers: the class of each number of the file, others being no class; None: numbers are those of the classes,
            and 0 is no class.

    Raises:
        DataError: not a readable PLY file with labels, unknown numbers, or a mesh that is not in meters.
    """
    elements = _read_ply(path)
    vertex, face = elements.get("vertex"), elements.get("face")
    if vertex is None or not {"x", "y", "z"} <= set(_names(vertex)):
        raise _no_labels(path, f"elements {', '.join(elements)}")
    with np.errstate(over="ignore"):  # infinite ones are left out
        positions = np.stack([vertex[axis] for axis in "xyz"], axis=1).astype(np.float32)
    of_vertex = _label_property(vertex)
    if face is not None and len(face):
        triangles, face_of = _triangles(path, face, len(positions))
        of_face = _label_property(face)
        if of_face is not None:
            found = _classes(path, of_face[face_of][:, None].repeat(3, axis=1), info, numbers)
            return _sampled(path, positions[triangles], found)
        if of_vertex is not None:
            return _sampled(path, positions[triangles], _classes(path, of_vertex, info, numbers)[triangles])
    if of_vertex is None:
        raise _no_labels(path, f"properties {', '.join(_names(vertex))} of vertices")
    usable = np.isfinite(positions).all(axis=1)
    return LabeledPoints(positions[usable], _classes(path, of_vertex, info, numbers)[usable])


def voxel_votes(
    points: LabeledPoints, *, transform: NDArray[np.float64], origin: NDArray[np.float64], num_classes: int
) -> NDArray[np.uint8]:
    """[60, 36, 60] uint8: the most frequent class of the points in each voxel, ties to the smallest; 0 without points.

    Args:
        transform: [4, 4] from the points' world to the grid's.
        origin: [3] world (X, Y, Z) of the grid's lower corner.
    """
    low = np.linalg.inv(transform)
    center = low[:3, :3] @ (origin + np.array(GRID_SHAPE)[[0, 2, 1]] * VOXEL_SIZE / 2) + low[:3, 3]
    near = (
        np.linalg.norm(points.positions - center.astype(np.float32), axis=1)
        < np.linalg.norm(GRID_SHAPE) * VOXEL_SIZE / 2
    )
    world = points.positions[near] @ transform[:3, :3].T + transform[:3, 3]
    voxels = np.floor((world - origin) / VOXEL_SIZE).astype(np.int64)[:, [0, 2, 1]]
    inside = ((voxels >= 0) & (voxels < GRID_SHAPE)).all(axis=1)
    flat = np.ravel_multi_index(tuple(voxels[inside].T), GRID_SHAPE)
    votes = points.labels[near][inside].astype(np.int64)
    votes[votes == IGNORE_LABEL] = num_classes
    counts = np.bincount(flat * (num_classes + 1) + votes, minlength=math.prod(GRID_SHAPE) * (num_classes + 1))
    winner = counts.reshape(*GRID_SHAPE, -1).argmax(axis=-1).astype(np.uint8)
    winner[winner == num_classes] = IGNORE_LABEL
    return winner


def _read_ply(path: Path) -> dict[str, PlyElement]:
    what, advice = "a PLY file", "replace the file"
    try:
        with path.open("rb") as file:
            header = file.read(_LONGEST_HEADER).partition(b"end_header")[0]
            if not header.startswith(b"ply"):
                raise ValueError("no PLY file by its first bytes")
            counts = [int(line.split()[2]) for line in header.splitlines() if line.startswith(b"element")]
            # Memory is allocated for what the header counts.
            if sum(counts) > path.stat().st_size:
                raise ValueError(f"{sum(counts)} elements in a file of {path.stat().st_size} bytes")
        triangles = {"face": {"vertex_indices": 3, "vertex_index": 3}}
        try:  # of triangles alone, which are read at once
            found = PlyData.read(str(path), mmap=False, known_list_len=triangles)
        except Exception:
            found = PlyData.read(str(path), mmap=False)
        return {element.name: element for element in found.elements}
    except OSError as error:
        said = error.strerror or reason(error)
        raise DataError.about(path, expected=what, found=said, advice="name another file") from error
    except Exception as error:  # of the library: its own and nearly any other
        raise DataError.about(path, expected=what, found=f"a damaged one ({reason(error)})", advice=advice) from error


def _names(element: PlyElement) -> list[str]:
    return [one.name for one in element.properties]


def _label_property(element: PlyElement) -> NDArray[Any] | None:
    by_name = {name.lower().removeprefix("scalar_"): name for name in _names(element)}
    chosen = next((by_name[name] for name in _LABELS if name in by_name), None)
    return None if chosen is None else np.asarray(element[chosen])


def _triangles(path: Path, face: PlyElement, num_vertices: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """[T, 3] vertices of triangles, larger faces as fans of them, and [T] the face that each is of."""
    name = next((name for name in ("vertex_indices", "vertex_index") if name in _names(face)), None)
    if name is None:
        raise _no_labels(path, f"faces with {', '.join(_names(face))}")
    lists = face[name]
    sizes = np.array([len(one) for one in lists]) if lists.dtype == object else np.full(len(lists), lists.shape[-1])
    parts = []
    for size in np.unique(sizes[sizes >= 3]):
        (faces,) = np.nonzero(sizes == size)
        corners = np.stack(lists[faces]).astype(np.int64)
        parts += [(corners[:, [0, corner, corner + 1]], faces) for corner in range(1, size - 1)]
    triangles = np.concatenate([corners for corners, _ in parts] or [np.zeros((0, 3), dtype=np.int64)])
    if triangles.size and not 0 <= triangles.min() <= triangles.max() < num_vertices:
        raise DataError(f"{path}: expected faces of its {num_vertices} vertices, found others; the file is damaged")
    return triangles, np.concatenate([faces for _, faces in parts] or [np.zeros(0, dtype=np.int64)])


def _classes(path: Path, found: NDArray[Any], info: SetInfo, numbers: Mapping[int, int] | None) -> NDArray[np.uint8]:
    """Classes of the numbers of a file, 255 for none; any shape."""
    values, index = np.unique(found, return_inverse=True)
    if numbers is None:
        known = {number: number for number in range(1, info.num_classes)} | dict.fromkeys(
            (0, IGNORE_LABEL), IGNORE_LABEL
        )
        unknown = [str(value) for value in values.tolist() if value not in known]
        if unknown:
            raise DataError(
                f"{path}: expected labels 0..{info.num_classes - 1} or {IGNORE_LABEL}, found {abbreviated(unknown)}; "
                "give the numbers of every class in a file (`labels`)"
            )
        numbers = known
    classes = np.array([numbers.get(value, IGNORE_LABEL) for value in values.tolist()], dtype=np.uint8)
    return classes[index].reshape(found.shape)


def _sampled(path: Path, corners: Points, labels: NDArray[np.uint8]) -> LabeledPoints:
    """Samples of triangles [T, 3, 3], at most ``SPACING`` apart, with the label [T, 3] of the nearest corner."""
    usable = np.isfinite(corners).all(axis=(1, 2))
    corners, labels = corners[usable], labels[usable]
    longest = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2).max(axis=1, initial=0.0)
    steps = np.maximum(1, np.ceil(longest / SPACING)).astype(np.int64)
    if float((steps.astype(np.float64) ** 2).sum()) > _MOST_SAMPLES:
        raise DataError(
            f"{path}: expected a room in meters, found triangles with edges up to {longest.max():.3g}; scale the "
            "mesh, or split its largest triangles"
        )
    positions, found = [np.zeros((0, 3), dtype=np.float32)], [np.zeros(0, dtype=np.uint8)]
    for count in np.unique(steps):
        weights = _barycentric(int(count))
        chosen = steps == count
        positions.append(np.einsum("sc,tcd->tsd", weights, corners[chosen]).reshape(-1, 3))
        found.append(labels[chosen][:, weights.argmax(axis=1)].reshape(-1))
    return LabeledPoints(np.concatenate(positions), np.concatenate(found))


def _barycentric(count: int) -> Points:
    """[count**2, 3] weights of the corners at the centers of a triangle's equal parts."""
    first, second = np.mgrid[:count, :count]
    upright = np.stack([first, second], axis=-1)[first + second < count] + 1 / 3
    turned = np.stack([first, second], axis=-1)[first + second < count - 1] + 2 / 3
    two = np.concatenate([upright, turned]) / count
    return np.concatenate([two, 1 - two.sum(axis=1, keepdims=True)], axis=1).astype(np.float32)


def _no_labels(path: Path, found: str) -> DataError:
    return DataError(
        f"{path}: expected vertices x, y, z with a property {' or '.join(_LABELS)} of vertices or faces, found "
        f"{found}; export the mesh with its labels"
    )
