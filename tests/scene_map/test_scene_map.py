"""SceneMap: one room over all frames, the same map in any order, saved and continued."""

import random
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from ammnet_sparse.completion import SceneCompleter
from ammnet_sparse.scene_map.scene_map import SceneMap
from tests.scene_map.support import FLOOR, TILTED, completer_by_rule, in_world, path_through


@pytest.fixture(scope="module")
def completer(weights: Path) -> SceneCompleter:
    return completer_by_rule(weights)


def _map_of(completer: SceneCompleter, frames: list, **options) -> SceneMap:
    scene_map = SceneMap(completer, **options)
    for frame in frames:
        scene_map.add_frame(partial(_same, frame))
    scene_map.finish()
    return scene_map


def _same(value):
    return value


@pytest.mark.parametrize("world", [np.eye(4), TILTED], ids=["upright", "tilted"])
def test_a_room_has_one_floor(completer: SceneCompleter, world) -> None:
    _, frames = path_through(3, 10)
    scene_map = _map_of(completer, in_world(frames, world))
    room = scene_map.room
    print(room.describe(), np.round(room.map_from_given @ world, 3))
    assert (room.map_from_given @ world)[2, 2] > np.cos(np.radians(0.3))
    volume = scene_map.volume()
    heights = np.array([pose[2, 3] for pose in volume.poses])
    np.testing.assert_allclose(heights, [frame.pose[2, 3] for frame in frames], atol=0.03)
    assert (volume.labels == FLOOR).any(axis=(0, 2)).nonzero()[0].tolist() == [0]


def test_any_order_gives_the_same_map(completer: SceneCompleter) -> None:
    _, frames = path_through(5, 9)
    frames = in_world(frames, TILTED)
    first = _map_of(completer, frames).volume()
    for seed in range(3):
        random.Random(seed).shuffle(frames)
        other = _map_of(completer, frames).volume()
        np.testing.assert_array_equal(other.map_from_given, first.map_from_given)
        np.testing.assert_array_equal(other.origin, first.origin)
        np.testing.assert_array_equal(other.num_views, first.num_views)
        np.testing.assert_array_equal(other.probabilities, first.probabilities)


def test_frames_that_were_looked_at_are_completed_once(completer: SceneCompleter) -> None:
    _, frames = path_through(5, 9)
    scene_map, names = SceneMap(completer), []
    for frame in frames:
        scene_map.look_at(frame)
    for frame in frames:
        scene_map.add_frame(lambda frame=frame: names.append(frame.name) or frame)
    scene_map.finish()
    assert tuple(names) == scene_map.names == tuple(frame.name for frame in frames)
    found, expected = scene_map.volume(), _map_of(completer, frames).volume()
    np.testing.assert_array_equal(found.map_from_given, expected.map_from_given)
    np.testing.assert_array_equal(found.probabilities, expected.probabilities)
