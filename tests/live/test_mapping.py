"""``LiveMap``: the map that grows with a stream."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from ammnet_sparse.files.errors import DataError
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
    assert (live_map.map.num_frames, at_rest.name) == (2, "rest")
    for name in ("pose", "world_from_given"):
        found, expected = (getattr(scene.frame.placement, name) for scene in (at_rest, moved))
        np.testing.assert_array_equal(found, expected)
    alone = completer.complete(frames[-1]).frame.placement.pose
    assert not np.allclose(alone, moved.frame.placement.pose, atol=1e-3)


def test_a_pose_that_jumps_is_left_out_until_it_stays(weights: Path) -> None:
    frame = walk_through(3, 1)[0]
    assert frame.pose is not None
    live_map = LiveMap(completer_by_rule(weights), min_motion=0.1)
    for number in range(18):
        pose = frame.pose.copy()
        pose[0, 3] += 0.02 * number + (-4.0 if number == 3 else 4.0 if number > 8 else 0.0)
        moved = dataclasses.replace(frame, name=str(number), pose=pose)
        if number == 3 or 8 < number < 16:
            with pytest.raises(DataError, match="pose jumps by"):
                live_map.complete_frame(moved)
        else:
            live_map.complete_frame(moved)
    assert live_map.map.names == ("0", "5", "16")
