"""Depth as cameras deliver it: outliers, and the patterns of holes that registration leaves."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from ammnet_sparse.camera.geometry.placement import place_camera
from ammnet_sparse.camera.images import to_network_images
from ammnet_sparse.camera.repairs import without_outliers, without_pattern
from tests.camera.own_views import angle, box_room, room_view, scaled_camera

Depth = NDArray[np.float32]


def speckled(depth: Depth, share: float) -> Depth:
    rng = np.random.default_rng(0)
    wrong = rng.uniform(0.2, 10.0, depth.shape).astype(np.float32)
    return np.where(rng.random(depth.shape) < share, wrong, depth)


def every(depth: Depth, rows: int, columns: int) -> Depth:
    """Depth at every so manieth row and column only, not at the first."""
    left = np.zeros_like(depth)
    left[rows // 2 :: rows, columns // 2 :: columns] = depth[rows // 2 :: rows, columns // 2 :: columns]
    return left


def doubled(depth: Depth) -> Depth:
    return depth.repeat(2, axis=0).repeat(2, axis=1)


FAULTS: dict[str, Callable[[Depth], Depth]] = {
    "2 % outliers": lambda depth: speckled(depth, 0.02),
    "20 % outliers": lambda depth: speckled(depth, 0.2),
    "half the size, outliers": lambda depth: speckled(depth[::2, ::2], 0.05),
    "every second row": lambda depth: every(depth, 2, 1),
    "every third row and column": lambda depth: every(depth, 3, 3),
    "checkered": lambda depth: depth * (np.indices(depth.shape).sum(axis=0) % 2),
    "half of the pixels": lambda depth: depth * (np.random.default_rng(0).random(depth.shape) < 0.5),
    "in a larger image, first": lambda depth: every(doubled(depth), 2, 2),
    "in a larger image, middle": lambda depth: np.roll(every(doubled(depth), 4, 4), 1, axis=0),
    "pattern of outliers": lambda depth: every(speckled(depth, 0.03), 2, 2),
    "in a larger image, outliers": lambda depth: every(speckled(doubled(depth), 0.03), 2, 2),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_depth_gives_the_placement_of_whole_depth(fault: str) -> None:
    view = room_view(0, "floor")
    depth = FAULTS[fault](view.depth).astype(np.float32)
    images = to_network_images(None, depth, camera=scaled_camera(depth.shape[0] / 480))
    placed = place_camera(images.depth, camera=images.camera)
    assert placed.up_confidence == placed.floor.confidence == "sure"
    assert angle(placed.up, view.up) < 0.5 and abs(placed.floor.below - view.height) < 0.02
    # Nothing is where nothing was.
    both = (images.depth > 0) & (view.depth > 0)
    assert both.sum() > 0.85 * (view.depth > 0).sum()
    assert (np.abs(images.depth - view.depth)[both] > 0.1 * view.depth[both]).mean() < 0.02


def test_whole_depth_stays_as_it_is() -> None:
    for depth in (room_view(0, "floor").depth, box_room(0)[0], np.zeros((480, 640), np.float32)):
        assert without_outliers(depth)[0] is depth and without_pattern(depth)[0] is depth


def test_patterns_are_not_filled_across_edges() -> None:
    depth = np.where(np.arange(64) < 33, 1.0, 2.0)[None].repeat(48, axis=0).astype(np.float32)
    filled, share = without_pattern(every(depth, 1, 4))
    assert share > 0.5 and set(np.unique(filled)) == {0.0, 1.0, 2.0}
    assert (filled[:, 31:34] == 0).all()
