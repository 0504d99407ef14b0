"""Completed scenes as binary glTF 2.0, which nearly every 3D program opens: a mesh and a material per class."""

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.data.set_info import NYU, SetInfo
from ammnet_sparse.files.writing import replacing_open
from ammnet_sparse.pictures.comparison import check_shape, check_volume, is_occupied
from ammnet_sparse.pictures.ply import face_corners, shared_corners, visible_faces

_ARRAY_BUFFER, _ELEMENT_ARRAY_BUFFER = 34962, 34963
_FLOAT, _UNSIGNED_INT = 5126, 5125
_JSON_CHUNK, _BINARY_CHUNK = b"JSON", b"BIN\0"


def write_glb(
    path: str | Path,
    labels: NDArray[np.uint8],
    *,
    known: NDArray[np.bool_] | None = None,
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0),
    info: SetInfo = NYU,
) -> Path:
    """Writes the visible faces of the occupied voxels in meters, Y up (world (x, y, z) is (x, z, -y) there).

    Returns the file's path.

    Each class is a node, a mesh and a material of its name, so that a 3D program can hide it. Adjacent faces in one
    plane are merged into rectangles. An empty scene gives a valid file without meshes.

    Args:
        path: file to write; an existing one is replaced atomically.
        labels: [X, H, Y] uint8, a class; 0 and 255 are not drawn.
        known: [X, H, Y] bool, the known voxels of a room: walls, windows and ceiling then have no faces towards others,
            so that one looks into the room. None: all are closed.
        origin: world (x, y, z) in meters of the outer corner of voxel (0, 0, 0).
        info: the set, which has names, colors and voxel size.

    Raises:
        ValueError: labels or mask of another shape or type.
        OSError: the file cannot be written.
    """
    check_volume("labels", labels, labels.shape, info=info)
    shell = None
    if known is not None:
        check_shape("known", known, labels.shape)
        shell = np.isin(labels, info.shell)
    faces, face_classes = merged_faces(labels, shell=shell, known=known)
    corners, classes, indices = shared_corners(faces, face_classes, shape=labels.shape)
    positions = np.asarray(origin)[[0, 2, 1]] + info.voxel_size * corners  # along (X, height, Y)
    positions[:, 2] *= -1
    triangles = indices[:, [0, 1, 2, 0, 2, 3]]
    meshes = {}
    for label in np.unique(classes).tolist():
        rows = np.cumsum(classes == label) - 1
        meshes[info.class_names[label]] = (
            positions[classes == label].astype("<f4"),
            rows[triangles[face_classes == label]].astype("<u4").ravel(),
        )
    document, binary = _document(meshes, info)
    with replacing_open(path) as file:
        file.write(_container(document, binary))
    return Path(path)


def merged_faces(
    labels: NDArray[np.uint8], *, shell: NDArray[np.bool_] | None = None, known: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """The visible faces, those of one class in one plane merged greedily into rectangles; masks as ``visible_faces``.

    Returns:
        Corners [M, 4, 3] in voxels along (X, height, Y), counter-clockwise in world axes seen from outside, and the
        classes [M].
    """
    corners, classes = [np.empty((0, 4, 3), dtype=np.int64)], [np.empty(0, dtype=np.uint8)]
    for axis, side, mask in visible_faces(is_occupied(labels), shell=shell, known=known):
        order = [axis, (axis + 1) % 3, (axis + 2) % 3]
        low, high, found = _rectangles(np.where(mask, labels, 0).transpose(order))
        size = (high - low)[:, np.argsort(order)]
        corners.append(low[:, None, np.argsort(order)] + face_corners(axis, side) * size[:, None])
        classes.append(found)
    return np.concatenate(corners), np.concatenate(classes)


def _rectangles(faces: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]:
    """Rectangles that cover the nonzero cells [layers, rows, columns] of one value: low and high corners, and values.

    First the runs of each row are found, then equal runs of consecutive rows are joined.
    """
    padded = np.pad(faces, ((0, 0), (0, 0), (1, 1)))
    changes = padded[..., 1:] != padded[..., :-1]
    layer, row, start = np.nonzero(changes[..., :-1] & (faces != 0))
    end = np.nonzero(changes[..., 1:] & (faces != 0))[2] + 1
    value = faces[layer, row, start]
    order = np.lexsort((row, value, end, start, layer))
    layer, row, start, end, value = layer[order], row[order], start[order], end[order], value[order]
    same = [np.diff(each) == 0 for each in (layer, start, end, value.astype(np.int64))]
    is_first = np.append(True, ~np.logical_and.reduce([*same, np.diff(row) == 1]))[: len(row)]
    first = np.flatnonzero(is_first)
    last = np.append(first[1:], len(row))[: len(first)] - 1
    low = np.stack([layer[first], row[first], start[first]], axis=1)
    high = np.stack([layer[first] + 1, row[last] + 1, end[first]], axis=1)
    return low, high, value[first]


def _document(
    meshes: Mapping[str, tuple[NDArray[np.float32], NDArray[np.uint32]]], info: SetInfo
) -> tuple[dict[str, Any], bytes]:
    """The description of the meshes, and their vertices [N, 3] and triangles [3 T] one after another."""
    lists: dict[str, list[Any]] = {
        name: [] for name in ("nodes", "meshes", "materials", "accessors", "bufferViews", "buffers")
    }
    binary = b""
    for index, (name, (vertices, triangles)) in enumerate(meshes.items()):
        primitive = {"attributes": {"POSITION": 2 * index}, "indices": 2 * index + 1, "material": index}
        lists["nodes"].append({"name": name, "mesh": index})
        lists["meshes"].append({"name": name, "primitives": [primitive]})
        lists["materials"].append(_material(name, info.classes[name]))
        lists["accessors"] += [
            {
                **_accessor(2 * index, _FLOAT, len(vertices), "VEC3"),
                "min": vertices.min(axis=0).tolist(),
                "max": vertices.max(axis=0).tolist(),
            },
            _accessor(2 * index + 1, _UNSIGNED_INT, len(triangles), "SCALAR"),
        ]
        for array, target in ((vertices, _ARRAY_BUFFER), (triangles, _ELEMENT_ARRAY_BUFFER)):
            view = {"buffer": 0, "byteOffset": len(binary), "byteLength": array.nbytes, "target": target}
            lists["bufferViews"].append(view)
            binary += array.tobytes()
    if binary:
        lists["buffers"].append({"byteLength": len(binary)})
    nodes = {"nodes": list(range(len(lists["nodes"])))} if binary else {}
    document = {"asset": {"version": "2.0", "generator": "ammnet-sparse"}, "scene": 0, "scenes": [nodes]}
    return document | {name: entries for name, entries in lists.items() if entries}, binary  # none may be empty


def _accessor(view: int, component: int, count: int, kind: str) -> dict[str, Any]:
    return {"bufferView": view, "componentType": component, "count": count, "type": kind}


def _material(name: str, color: tuple[int, int, int]) -> dict[str, Any]:
    """A matte material; glTF's colors are linear."""
    srgb = np.array(color) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    return {
        "name": name,
        "pbrMetallicRoughness": {
            "baseColorFactor": [*linear.round(6).tolist(), 1.0],
            "metallicFactor": 0.0,
            "roughnessFactor": 1.0,
        },
    }


def _container(document: dict[str, Any], binary: bytes) -> bytes:
    text = json.dumps(document, separators=(",", ":")).encode()
    chunks = b"".join(_chunks([(_JSON_CHUNK, text, b" "), (_BINARY_CHUNK, binary, b"\0")]))
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def _chunks(contents: list[tuple[bytes, bytes, bytes]]) -> Iterator[bytes]:
    """Chunks of (kind, content, padding to a multiple of four bytes); none without content."""
    for kind, content, padding in contents:
        if content:
            content += padding * (-len(content) % 4)
            yield struct.pack("<I4s", len(content), kind) + content
