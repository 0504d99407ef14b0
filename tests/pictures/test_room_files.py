"""The files of a map: what each holds, where it lies, and what is not replaced."""

import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from plyfile import PlyData

from ammnet_sparse.data.grid import CLASS_NAMES
from ammnet_sparse.data.set_info import NYU
from ammnet_sparse.files.yaml_text import parse_yaml
from ammnet_sparse.pictures.occupancy import FREE, OCCUPIED, UNKNOWN, occupancy, write_occupancy
from ammnet_sparse.pictures.room_files import ROOM_FILES, foreign_room_files, write_room
from ammnet_sparse.scene_map.volume import UNKNOWN_LABEL
from tests.pictures.rooms import FLOOR, ORIGIN, TABLE, WALL, box_labels, map_volume
from tests.pictures.test_gltf import read_glb
from tests.pictures.test_page import read_data, volumes_of

SHAPE = (20, 12, 24)


def served(folder: Path) -> tuple[NDArray[np.int64], dict[str, object]]:
    """[X, Y]: 100 occupied, 0 free, -1 unknown, as map_server and Nav2 make it of the files; and the description."""
    described = parse_yaml((folder / "map.yaml").read_text())
    assert described["mode"] == "trinary" and described["negate"] == 0
    shade = np.asarray(Image.open(folder / described["image"]))
    probability = (255 - shade[::-1].T.astype(float)) / 255
    found = np.full(probability.shape, -1)
    found[probability > described["occupied_thresh"]] = 100
    found[probability < described["free_thresh"]] = 0
    return found, described


def test_a_robot_reads_what_is_in_its_way(tmp_path: Path) -> None:
    volume = map_volume(box_labels(SHAPE))
    assert write_occupancy(tmp_path, volume) == [tmp_path / "map.pgm", tmp_path / "map.yaml"]
    assert (tmp_path / "map.pgm").read_bytes().startswith(b"P5\n20 24\n255\n")
    places, described = served(tmp_path)
    labels = volume.labels
    expected = np.full((20, 24), -1)
    expected[2:-2, 2:-2] = 0
    expected[(labels == WALL).any(axis=1) | (labels == TABLE).any(axis=1)] = 100
    np.testing.assert_array_equal(places, expected)
    assert described["resolution"] == 0.08 and described["origin"] == pytest.approx([*ORIGIN[:2], 0.0])


def test_heights_and_what_is_known_decide() -> None:
    labels = np.full((5, 20, 1), UNKNOWN_LABEL, dtype=np.uint8)  # centers from -0.01 to 1.51 m
    labels[0] = 0
    labels[0, 12] = TABLE  # 0.95 m
    labels[1, 0] = FLOOR
    labels[2, 15:] = 0  # too little is known
    labels[3, :15] = 0
    volume = map_volume(labels)
    assert occupancy(volume)[:, 0].tolist() == [OCCUPIED, FREE, UNKNOWN, FREE, UNKNOWN]
    assert occupancy(volume, heights=(0.1, 0.9))[:, 0].tolist() == [FREE, FREE, UNKNOWN, FREE, UNKNOWN]
    with pytest.warns(UserWarning, match="map_heights"):
        assert occupancy(volume, heights=(5.0, 6.0))[:, 0].tolist() == [UNKNOWN, FREE, UNKNOWN, UNKNOWN, UNKNOWN]


def test_another_resolution_keeps_places(tmp_path: Path) -> None:
    volume = map_volume(box_labels(SHAPE))
    voxels = occupancy(volume)
    write_occupancy(tmp_path, volume, resolution=0.05)
    image = np.asarray(Image.open(tmp_path / "map.pgm"))
    assert image.shape == (39, 32)  # 1.92 m are more than 38 pixels
    for x, y in ((0, 0), (13, 20), (31, 37), (5, 30)):
        assert image[38 - y, x] == voxels[int((x + 0.5) * 0.05 / 0.08), int((y + 0.5) * 0.05 / 0.08)]
    assert (image[0] == UNKNOWN).all()  # beyond the last voxel
    assert served(tmp_path)[1]["origin"] == pytest.approx([*ORIGIN[:2], 0.0])


def test_all_files_are_of_one_room(tmp_path: Path) -> None:
    volume = map_volume(box_labels(SHAPE))
    paths = write_room(tmp_path / "new", volume, palette="distinct")
    assert sorted(path.name for path in paths) == sorted(ROOM_FILES)
    assert all(path.is_file() for path in paths)
    with np.load(tmp_path / "new" / "room.npz", allow_pickle=False) as file:
        np.testing.assert_array_equal(file["labels"], volume.labels)
        for name in ("probabilities", "num_views", "origin", "poses", "map_from_given"):
            np.testing.assert_array_equal(file[name], getattr(volume, name))
        assert file["voxel_size"] == 0.08
        assert tuple(file["classes"]) == CLASS_NAMES and tuple(file["names"]) == volume.names
    vertices = PlyData.read(tmp_path / "new" / "room.ply")["vertex"]
    _, triangles = read_glb(tmp_path / "new" / "room.glb")
    table = vertices.data[vertices["label"] == TABLE]
    corners = triangles["table"].reshape(-1, 3)
    assert (table["x"].max(), table["z"].max()) == pytest.approx(tuple(corners[:, :2].max(axis=0)))
    assert table["y"].max() == pytest.approx(-corners[:, 2].min())
    (scene,) = read_data(tmp_path / "new" / "page.html")["scenes"]
    assert volumes_of(scene)[: volume.labels.size] == volume.labels.tobytes()
    x, height, y = scene["path"][0]
    assert ORIGIN[0] + 0.08 * x == pytest.approx(volume.poses[0, 0, 3], abs=1e-3)
    assert ORIGIN[1] + 0.08 * y == pytest.approx(volume.poses[0, 1, 3], abs=1e-3)
    assert ORIGIN[2] + 0.08 * height == pytest.approx(1.2, abs=1e-3)
    assert np.mean(scene["view"], axis=0) == pytest.approx(
        [*scene["path"][-1][:2], scene["path"][-1][2] + 6.25], abs=0.02
    )
    assert tuple(table[0][name] for name in ("red", "green", "blue")) != NYU.classes["table"]


def test_only_files_of_a_map_are_replaced(tmp_path: Path) -> None:
    assert foreign_room_files(tmp_path / "none") == []
    (tmp_path / "map.pgm").write_bytes(b"of somebody")
    assert foreign_room_files(tmp_path) == [tmp_path / "map.pgm"]
    np.savez(tmp_path / "room.npz", labels=np.zeros(3))  # of a frame named room
    assert foreign_room_files(tmp_path) == [tmp_path / "room.npz", tmp_path / "map.pgm"]
    write_room(tmp_path, map_volume(box_labels(SHAPE)))
    assert foreign_room_files(tmp_path) == []
    page = (tmp_path / "page.html").read_text()
    (tmp_path / "page.html").write_text(re.sub("<title>.*</title>", "<title>Completed scenes</title>", page))
    assert foreign_room_files(tmp_path) == [tmp_path / "page.html"]


def test_a_map_without_a_frame_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="poses"):
        write_room(tmp_path, map_volume(box_labels(SHAPE), num_frames=0))
