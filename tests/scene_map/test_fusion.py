"""Fusing: what a frame says, and what many say together."""

import numpy as np

from ammnet_sparse.scene_map import fusion
from ammnet_sparse.scene_map.blocks import EDGE, Blocks, Evidence

CHAIR = 5


def _said(sums: np.ndarray, weight: float, views: int) -> Evidence:
    """Evidence about one voxel: sums [12] in nats."""
    units = fusion.WEIGHT_UNITS * fusion.LOG_UNITS
    return Evidence(
        np.rint(sums * units).astype(np.int32).reshape(12, 1, 1, 1),
        np.full((1, 1, 1), round(weight * fusion.WEIGHT_UNITS), np.int32),
        np.full((1, 1, 1), views, np.int32),
    )


def _guess(weight: float) -> Evidence:
    probabilities = np.full(12, 0.01)
    probabilities[CHAIR] = 0.89
    return _said(weight * np.log(probabilities), weight, 1)


def _free() -> Evidence:
    sums = np.zeros(12)
    sums[0] = fusion.FREE_WEIGHT * fusion.FREE_LOG_ODDS
    return _said(sums, fusion.FREE_WEIGHT, 1)


def _probabilities(*evidence: Evidence) -> np.ndarray:
    total = Evidence.none(12, (1, 1, 1))
    for one in evidence:
        total.add(one)
    return fusion.probabilities(total)[:, 0, 0, 0]


def test_free_space_undoes_an_early_guess() -> None:
    guess = _guess(fusion.OCCLUDED_WEIGHT)
    assert _probabilities(guess).argmax() == CHAIR
    assert _probabilities(guess, _free(), _free()).argmax() == 0
    surface = [_guess(fusion.SURFACE_WEIGHT)] * 4
    assert _probabilities(*surface, _free()).argmax() == CHAIR  # an error at an edge of the depth


def test_many_views_do_not_make_the_map_certain() -> None:
    once, often, very_often = (_probabilities(*[_guess(fusion.SURFACE_WEIGHT)] * count) for count in (1, 40, 4000))
    assert once[CHAIR] < often[CHAIR] < 1 and np.isclose(often[CHAIR], very_often[CHAIR], atol=1e-3)
    np.testing.assert_allclose(once.sum(), 1, atol=1e-6)
    assert not fusion.probabilities(Evidence.none(12, (1, 1, 1))).any()


def test_blocks_hold_the_sum_of_boxes_anywhere() -> None:
    rng = np.random.default_rng(0)
    blocks, dense = Blocks(3, 4), np.zeros((3, 120, 4, 120), dtype=np.int64)
    for _ in range(5):
        x, y = rng.integers(-50, 30, 2).tolist()
        shape = (37, 4, 23)
        views = rng.integers(0, 2, shape).astype(np.int32)
        box = Evidence(rng.integers(-9, 9, (3, *shape)).astype(np.int32) * views, 2 * views, views)
        blocks.add((x, y), box)
        dense[:, x + 50 : x + 87, :, y + 50 : y + 73] += box.sums
    for (x, y), block in blocks.at.items():
        start, stop = np.array([x, y]) * EDGE + 50, np.array([x, y]) * EDGE + 50 + EDGE
        low, high = np.maximum(start, 0), np.minimum(stop, 120)
        part = block.part(slice(low[0] - start[0], high[0] - start[0]), slice(low[1] - start[1], high[1] - start[1]))
        np.testing.assert_array_equal(part.sums, dense[:, low[0] : high[0], :, low[1] : high[1]])
    assert sum(int(np.abs(block.sums).sum()) for block in blocks.at.values()) == np.abs(dense).sum()


def test_a_box_turns_counterclockwise_seen_from_above() -> None:
    box = Evidence.none(2, (4, 3, 4))
    box.views[3, 1, 0] = 1  # at +X, -Y
    turned = box.turned(1)
    assert np.argwhere(turned.views).tolist() == [[3, 1, 3]]  # at +X, +Y
    np.testing.assert_array_equal(box.turned(4).views, box.views)
