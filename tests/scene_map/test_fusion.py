"""Fusing: what a frame says, and what many say together."""

import numpy as np

from ammnet_sparse.data.set_info import NYU
from ammnet_sparse.scene_map import fusion
from ammnet_sparse.scene_map.fused import EDGE, FusedFrames
from ammnet_sparse.scene_map.fusion import VIEWS, Evidence
from ammnet_sparse.scene_map.room import Room

CHAIR = 5


def _guess(weight: float) -> Evidence:
    """A frame says with 89 % that there is a chair."""
    logs = np.log(np.where(np.arange(12) == CHAIR, 0.89, 0.01))
    units = np.rint(weight * logs * fusion.WEIGHT_UNITS * fusion.LOG_UNITS)
    return np.array([*units, round(weight * fusion.WEIGHT_UNITS), 1], np.int32).reshape(14, 1, 1, 1)


def _free() -> Evidence:
    """A frame looks through the voxel."""
    weight = round(fusion.FREE_WEIGHT * fusion.WEIGHT_UNITS)
    sums = [round(weight * fusion.FREE_LOG_ODDS * fusion.LOG_UNITS), *[0] * 11]
    return np.array([*sums, weight, 1], np.int32).reshape(14, 1, 1, 1)


def _probabilities(*evidence: Evidence) -> np.ndarray:
    return fusion.probabilities(np.sum(evidence, axis=0))[:, 0, 0, 0]


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
    assert not fusion.probabilities(np.zeros((14, 1, 1, 1), np.int32)).any()


def test_blocks_hold_the_sum_of_boxes_anywhere() -> None:
    rng = np.random.default_rng(0)
    fused, dense = FusedFrames(Room(np.eye(4)), NYU), np.zeros((14, 128, 36, 128), dtype=np.int32)
    for _ in range(5):
        x, y = rng.integers(-50, 30, 2).tolist()
        box = rng.integers(0, 2, (37, 36, 23)) * rng.integers(-9, 9, (14, 37, 36, 23))
        box[VIEWS] = box.any(axis=0)
        fused.add((x, y), box.astype(np.int32))
        dense[:, x + 64 : x + 101, :, y + 64 : y + 87] += box
    for (x, y), block in fused.blocks.items():
        start_x, start_y = EDGE * x + 64, EDGE * y + 64
        np.testing.assert_array_equal(block, dense[:, start_x : start_x + EDGE, :, start_y : start_y + EDGE])
    assert sum(int(np.abs(block).sum()) for block in fused.blocks.values()) == np.abs(dense).sum()
