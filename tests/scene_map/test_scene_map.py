"""SceneMap: one room over all frames, the same map in any order, saved and continued."""

import dataclasses
import random
import tempfile
from pathlib import Path

import numpy as np
import pytest

from ammnet_sparse.camera.files.sequences.layouts import open_sequence
from ammnet_sparse.camera.files.stored import StoredImages
from ammnet_sparse.completion import SceneCompleter
from ammnet_sparse.data.grid import CLASS_NAMES
from ammnet_sparse.files.errors import DataError
from ammnet_sparse.scene_map import cells
from ammnet_sparse.scene_map.files import read_map
from ammnet_sparse.scene_map.room import Room
from ammnet_sparse.scene_map.scene_map import SceneMap
from ammnet_sparse.scene_map.volume import MapVolume
from tests.scene_map.support import FLOOR, TILTED, added, completer_by_rule, in_world, reads_of, walk_through


@pytest.fixture(scope="module")
def completer(weights: Path) -> SceneCompleter:
    return completer_by_rule(weights)


@pytest.fixture(scope="module")
def frames() -> list[StoredImages]:
    """In a world that is not upright."""
    return in_world(walk_through(3, 6), TILTED)


@pytest.fixture(scope="module")
def volume(completer: SceneCompleter, frames: list[StoredImages]) -> MapVolume:
    return added(SceneMap(completer), frames).volume()


def assert_same(volume: MapVolume, expected: MapVolume) -> None:
    for field in ("map_from_given", "origin", "num_views", "probabilities"):
        np.testing.assert_array_equal(getattr(volume, field), getattr(expected, field), err_msg=field)


def test_the_map_is_upright_with_one_floor(volume: MapVolume, frames: list[StoredImages]) -> None:
    map_from_room = volume.map_from_given @ TILTED
    assert map_from_room[2, 2] > np.cos(np.radians(0.5))
    assert np.abs(map_from_room[:2, :2]).max(axis=1) == pytest.approx(1, abs=1e-3)  # along the walls
    heights = [(np.linalg.inv(TILTED) @ frame.pose)[2, 3] for frame in frames if frame.pose is not None]
    np.testing.assert_allclose(volume.poses[:, 2, 3], heights, atol=0.03)
    assert np.flatnonzero((volume.labels == FLOOR).any(axis=(0, 2))).tolist() == [0]
    assert volume.names == tuple(frame.name for frame in frames)


def test_hit_voxels_are_where_the_depth_is(
    completer: SceneCompleter, volume: MapVolume, frames: list[StoredImages]
) -> None:
    images = completer.images_of(frames[0])
    v, u = (index[::97] for index in np.nonzero(images.depth))
    z, camera = images.depth[v, u].astype(np.float64), images.camera
    points = np.stack([(u - camera.cx) * z / camera.fx, (v - camera.cy) * z / camera.fy, z, np.ones_like(z)])
    voxels = np.floor(((volume.poses[0] @ points)[:3].T - volume.origin) / 0.08).astype(int)[:, [0, 2, 1]]
    is_inside = ((voxels >= 0) & (voxels < volume.labels.shape)).all(axis=1)
    labels = volume.labels[tuple(voxels[is_inside].T)]
    assert is_inside.mean() > 0.5 and ((labels > 0) & (labels < 255)).mean() > 0.9


def test_any_order_gives_the_same_map(completer: SceneCompleter, volume: MapVolume, frames: list[StoredImages]) -> None:
    for seed in range(2):
        shuffled = random.Random(seed).sample(frames, len(frames))
        assert_same(added(SceneMap(completer), shuffled).volume(), volume)
    known = SceneMap(completer)
    for frame in frames:
        known.look_at(frame)
    for read in reads_of(frames).values():
        known.add_frame(read)
        assert known.num_waiting == 0  # each is completed once
    assert_same(known.volume(), volume)


def test_frames_of_arrays_are_kept_to_be_placed_again(
    completer: SceneCompleter,
    volume: MapVolume,
    frames: list[StoredImages],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    scene_map = SceneMap(completer)
    for frame in frames:
        assert frame.pose is not None
        scene = scene_map.add(None, frame.depth, frame.pose, name=frame.name)
        assert scene.name == frame.name and list(tmp_path.iterdir())
    scene_map.finish()
    assert_same(scene_map.volume(), volume)
    del scene_map
    assert not list(tmp_path.iterdir())


def test_an_interrupted_frame_still_waits(
    completer: SceneCompleter, frames: list[StoredImages], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    scene_map = added(SceneMap(completer), frames[:2])
    for frame in frames[2:]:
        scene_map.look_at(frame)
    monkeypatch.setattr(completer, "complete_images", interrupt)
    with pytest.raises(KeyboardInterrupt):
        scene_map.finish()
    assert scene_map.num_waiting == 2


def test_samples_of_older_files_are_put_in_order(
    completer: SceneCompleter, frames: list[StoredImages], tmp_path: Path
) -> None:
    """They were in the order in which they were seen."""
    path = tmp_path / "map.npz"
    added(SceneMap(completer), frames[:1]).save(path)
    with np.load(path) as file:
        arrays = dict(file)
    order = np.random.default_rng(0).permutation(len(arrays["opencv_keys"]))
    older = {name: arrays[name][order] for name in ("opencv_keys", "opencv_sums")}
    np.savez(tmp_path / "older.npz", **{**arrays, **older})
    found = read_map(tmp_path / "older.npz").readings["opencv"].cells
    np.testing.assert_array_equal(found.keys, arrays["opencv_keys"])
    np.testing.assert_array_equal(found.sums, arrays["opencv_sums"])


def test_a_map_is_continued(
    completer: SceneCompleter, volume: MapVolume, frames: list[StoredImages], tmp_path: Path
) -> None:
    path = tmp_path / "map.npz"
    first = added(SceneMap(completer), frames[:3])
    first.save(path)
    assert_same(SceneMap.load(path, completer).volume(), first.volume())
    assert_same(added(SceneMap.load(path, completer, frames=reads_of(frames)), frames[3:]).volume(), volume)
    # Frames that cannot be read again are moved with the map.
    moved = added(SceneMap.load(path, completer), frames[3:]).volume()
    assert moved.names == volume.names
    np.testing.assert_array_equal(moved.map_from_given, volume.map_from_given)
    assert abs(int(moved.is_known.sum()) / int(volume.is_known.sum()) - 1) < 0.1


def test_a_frame_looked_at_before_an_interruption_counts_once(
    completer: SceneCompleter, frames: list[StoredImages], tmp_path: Path
) -> None:
    path = tmp_path / "map.npz"
    scene_map = SceneMap(completer)
    for frame in frames[:3]:
        scene_map.look_at(frame)
    scene_map.add_frame(lambda: frames[0])
    scene_map.save(path)
    continued = SceneMap.load(path, completer)
    for frame in frames[1:4]:
        continued.look_at(frame)
    continued.add_frame(lambda: frames[1])
    continued.save(path)
    saved = read_map(path)
    assert (len(saved.frames), saved.num_seen, saved.readings["opencv"].num_frames) == (2, 4, 4)


def test_a_known_room_is_kept(completer: SceneCompleter, frames: list[StoredImages], tmp_path: Path) -> None:
    room = Room(np.linalg.inv(TILTED))
    scene_map = added(SceneMap(completer, room=room), frames[:2])
    np.testing.assert_array_equal(scene_map.volume().map_from_given, room.map_from_given)
    scene_map.save(tmp_path / "map.npz")
    assert SceneMap.load(tmp_path / "map.npz", completer).room.is_at(room)


def test_a_map_without_a_frame(completer: SceneCompleter, frames: list[StoredImages]) -> None:
    scene_map = SceneMap(completer)
    with pytest.raises(DataError, match="pose"):
        scene_map.add_frame(lambda: dataclasses.replace(frames[0], pose=None))
    with pytest.raises(ValueError, match="add"):
        scene_map.volume()
    scene_map.finish()


def test_a_refused_frame_is_not_in_the_room(
    completer: SceneCompleter, frames: list[StoredImages], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither one that cannot be completed, nor one that is far away, or whose surface is."""

    def refuse(*_: object, **__: object) -> None:
        raise DataError("refused")

    scene_map, away = added(SceneMap(completer), frames[:2]), np.eye(4)
    scene_map.save(tmp_path / "before.npz")
    away[:2, 3] = 300.0
    with pytest.raises(DataError, match="frame 002.*pose"):
        scene_map.add_frame(lambda: dataclasses.replace(frames[2], pose=away @ frames[2].pose))
    for place, name, value, word in ((completer, "complete_images", refuse, "refused"), (cells, "REACH", 0.0, "pose")):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, value)
            with pytest.raises(DataError, match=word):
                scene_map.add_frame(lambda: frames[2])
    scene_map.save(tmp_path / "after.npz")
    found = np.load(tmp_path / "after.npz")
    for name, expected in np.load(tmp_path / "before.npz").items():
        np.testing.assert_array_equal(found[name], expected, err_msg=name)


def test_a_damaged_map_is_named(completer: SceneCompleter, frames: list[StoredImages], tmp_path: Path) -> None:
    path = tmp_path / "map.npz"
    added(SceneMap(completer), frames[:1]).save(path)
    arrays = dict(np.load(path))
    damaged = {
        "views": arrays["views"] - 1,
        "positions": np.zeros_like(arrays["positions"]),
        "sums": arrays["sums"][..., :-1],
        "map_from_given": 2 * arrays["map_from_given"],
        "poses": np.full_like(arrays["poses"], np.nan),
        "text": arrays["text"][:-1],
        "opencv_keys": arrays["opencv_keys"].astype(np.float64),
    }
    for name, values in damaged.items():
        np.savez(path, **{**arrays, name: values})
        with pytest.raises(DataError, match="map.npz"):
            SceneMap.load(path, completer)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="map.npz"):
        SceneMap.load(path, completer)


@pytest.mark.slow
def test_a_real_kitchen(shared_data: Path) -> None:
    sequence = open_sequence(shared_data / "sequence")
    assert sequence.intrinsics is not None
    completer = SceneCompleter("nyu_rgb_w64", intrinsics=sequence.intrinsics)
    volumes = []
    for order in (sequence.frames, random.Random(0).sample(sequence.frames, len(sequence.frames))):
        scene_map = SceneMap(completer)
        for frame in order:
            scene_map.look_at(frame.read())
        for frame in order:
            scene_map.add_frame(frame.read)
        scene_map.finish()
        volumes.append(scene_map.volume())
    assert_same(*volumes)
    labels, volume = volumes[0].labels, volumes[0]
    assert np.flatnonzero((labels == FLOOR).any(axis=(0, 2))).tolist() == [0]
    pose, stored = volume.poses[volume.names.index("frame-000280")], sequence.frames[7].read()
    camera, depth = sequence.intrinsics.camera, stored.depth[290:440:4, 150:500:4] / 1000  # the table top
    v, u = np.mgrid[290:440:4, 150:500:4]
    points = np.stack([(u - camera.cx) / camera.fx * depth, (v - camera.cy) / camera.fy * depth, depth], axis=-1)
    world = points[(depth > 0.4) & (depth < 4)] @ pose[:3, :3].T + pose[:3, 3]
    assert np.median(world[:, 2]) == pytest.approx(0.74, abs=0.06)
    voxels = np.floor((world - volume.origin) / volume.info.voxel_size).astype(int)[:, [0, 2, 1]]
    assert (labels[tuple(voxels.T)] == CLASS_NAMES.index("table")).mean() > 0.7
