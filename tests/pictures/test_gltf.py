"""Binary glTF: its chunks, what its arrays hold, and that it shows the same surface as the voxels."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ammnet_sparse.data.grid import CLASS_NAMES, CLASSES, IGNORE_LABEL
from ammnet_sparse.data.set_info import NYU
from ammnet_sparse.pictures.gltf import merged_faces, write_glb
from ammnet_sparse.pictures.ply import visible_faces

TABLE, WALL = CLASS_NAMES.index("table"), CLASS_NAMES.index("wall")


def read_glb(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[np.float32]]]:
    """The document, and by the name of each node the corners [N, 3, 3] of its triangles."""
    content = path.read_bytes()
    magic, version, length = struct.unpack_from("<4sII", content)
    assert (magic, version, length) == (b"glTF", 2, len(content)) and length % 4 == 0
    chunks, offset = [], 12
    while offset < length:
        size, kind = struct.unpack_from("<I4s", content, offset)
        assert size % 4 == 0
        chunks.append((kind, content[offset + 8 : offset + 8 + size]))
        offset += 8 + size
    assert [kind for kind, _ in chunks] in ([b"JSON"], [b"JSON", b"BIN\0"])
    document = json.loads(chunks[0][1])
    assert document["asset"]["version"] == "2.0" and all(document.values() for _ in document if _ != "scene")

    def array(index: int) -> NDArray[Any]:
        accessor = document["accessors"][index]
        view = document["bufferViews"][accessor["bufferView"]]
        data = chunks[1][1][view["byteOffset"] : view["byteOffset"] + view["byteLength"]]
        values = np.frombuffer(data, {5126: "<f4", 5125: "<u4"}[accessor["componentType"]])
        values = values.reshape(-1, 3) if accessor["type"] == "VEC3" else values
        assert len(values) == accessor["count"] and view["byteOffset"] % 4 == 0
        if "min" in accessor:
            np.testing.assert_array_equal([values.min(axis=0), values.max(axis=0)], [accessor["min"], accessor["max"]])
        return values

    triangles = {}
    for index in document["scenes"][document["scene"]].get("nodes", []):
        node = document["nodes"][index]
        (primitive,) = document["meshes"][node["mesh"]]["primitives"]
        assert document["materials"][primitive["material"]]["name"] == node["name"]
        triangles[node["name"]] = array(primitive["attributes"]["POSITION"])[array(primitive["indices"])].reshape(
            -1, 3, 3
        )
    return document, triangles


def test_a_voxel_lies_where_it_belongs_with_y_up(tmp_path: Path) -> None:
    labels = np.zeros((3, 4, 5), dtype=np.uint8)
    labels[2, 1, 4] = TABLE
    document, triangles = read_glb(write_glb(tmp_path / "r.glb", labels, origin=(10.0, 20.0, -0.05)))
    (corners,) = triangles.values()
    assert set(triangles) == {"table"} and corners.shape == (12, 3, 3)
    low, high = corners.reshape(-1, 3).min(axis=0), corners.reshape(-1, 3).max(axis=0)
    np.testing.assert_allclose(low, [10.16, 0.03, -20.4], atol=1e-5)  # (x, z, -y)
    np.testing.assert_allclose(high, [10.24, 0.11, -20.32], atol=1e-5)
    (material,) = document["materials"]
    linear = np.array(material["pbrMetallicRoughness"]["baseColorFactor"][:3])
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    np.testing.assert_allclose(255 * srgb, CLASSES[TABLE].color, atol=0.1)


def test_merged_faces_are_the_surface_of_the_voxels(tmp_path: Path) -> None:
    """Of each class as large, and facing outwards: then the enclosed volume is that of the voxels."""
    rng = np.random.default_rng(0)
    labels = np.where(rng.random((9, 8, 7)) < 0.5, 0, rng.choice([TABLE, WALL], (9, 8, 7))).astype(np.uint8)
    labels[2:7, 2:6, 1:5] = TABLE
    labels[0, 0, 0] = IGNORE_LABEL
    drawn = (labels != 0) & (labels != IGNORE_LABEL)
    _, triangles = read_glb(write_glb(tmp_path / "r.glb", labels))
    doubled = {
        name: np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        for name, corners in triangles.items()
    }
    size = NYU.voxel_size
    faces = [labels[mask] for _, _, mask in visible_faces(drawn)]
    for label, name in ((TABLE, "table"), (WALL, "wall")):
        area = np.linalg.norm(doubled[name], axis=1).sum() / 2
        assert area == pytest.approx(size**2 * sum((each == label).sum() for each in faces), rel=1e-4)
    volume = sum((corners.mean(axis=1) * doubled[name]).sum() / 6 for name, corners in triangles.items())
    assert volume == pytest.approx(size**3 * drawn.sum(), rel=1e-4)


def test_a_plane_is_one_rectangle_and_a_room_is_seen_from_within() -> None:
    labels = np.full((6, 5, 7), IGNORE_LABEL, dtype=np.uint8)
    labels[1:-1, 1:-1, 1:-1] = WALL
    labels[2:-2, 2:-2, 2:-2] = 0
    corners, classes = merged_faces(labels, shell=labels == WALL, known=labels == 0)
    assert corners.shape == (6, 4, 3) and (classes == WALL).all()
    assert corners.min(axis=(0, 1)).tolist() == [2, 2, 2] and corners.max(axis=(0, 1)).tolist() == [4, 3, 5]
    assert len(merged_faces(labels)[0]) == 12
    labels[0, 0, 0] = TABLE
    assert len(merged_faces(labels, shell=labels == WALL, known=labels == 0)[0]) == 12


def test_nothing_to_draw_is_a_valid_file(tmp_path: Path) -> None:
    document, triangles = read_glb(write_glb(tmp_path / "r.glb", np.zeros((2, 2, 2), dtype=np.uint8)))
    assert triangles == {} and "buffers" not in document
