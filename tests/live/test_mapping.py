"""``LiveMap``: the map that grows with a stream."""

import dataclasses
from pathlib import Path

import numpy as np

from ammnet_sparse.live.mapping import LiveMap
from tests.scene_map.support import TILTED, completer_by_rule, in_world, walk_through


def test_a_frame_at_rest_is_shown_in_the_room_of_the_map(weights: Path) -> None:
    frames = in_world(walk_through(3, 2), TILTED)
    completer = completer_by_rule(weights)
    live_map = LiveMap(completer, min_motion=0.1)
    for frame in frames:
        moved = live_map.complete_frame(frame)
    # Alone, this one has no floor and no walls.
    depth = frames[-1].depth.copy()
    depth[:, :400] = 0
    at_rest = live_map.complete_frame(dataclasses.replace(frames[-1], name="rest", depth=depth))
    assert (live_map.num_frames, at_rest.name) == (2, "rest")
    for name in ("pose", "world_from_given"):
        found, expected = (getattr(scene.frame.placement, name) for scene in (at_rest, moved))
        np.testing.assert_array_equal(found, expected)
    alone = completer.complete(frames[-1]).frame.placement.pose
    assert not np.allclose(alone, moved.frame.placement.pose, atol=1e-3)
