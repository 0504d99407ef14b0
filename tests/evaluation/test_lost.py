"""What is lost of the occluded voxels, counted by hand."""

import dataclasses

import pytest
import torch

from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.grid import UNMAPPED
from ammnet_sparse.evaluation.lost import LostVoxels
from tests.data.frames import random_frame

GRID = (12, 12, 12)


@pytest.fixture
def batch() -> Batch:
    """One hit voxel at (2, 2, 2); all others are scored, empty, and behind a surface."""
    frame = Batch.from_frame(random_frame(1, grid_shape=GRID))
    mapping = torch.full((1, 12**3), UNMAPPED, dtype=frame.mapping.dtype)
    mapping.view(1, *GRID)[0, 2, 2, 2] = 5
    return dataclasses.replace(
        frame,
        mapping=mapping,
        tsdf=torch.full_like(frame.tsdf, -1.0),
        label=torch.zeros(1, 12**3, dtype=torch.uint8),
        label_weight=torch.ones(1, 12**3, dtype=torch.bool),
    )


def test_voxels_are_counted_by_kind(batch: Batch) -> None:
    assert batch.label is not None
    label = batch.label.view(GRID)
    predicted = torch.zeros(1, *GRID, dtype=torch.uint8)
    for place, truth, found in (
        ((2, 2, 3), 5, 5),  # beside the hit voxel, right
        ((2, 2, 4), 5, 4),  # two away, found as another class
        ((2, 2, 8), 5, 0),  # six away, lost
        ((11, 2, 2), 7, 0),  # nine away, lost
        ((2, 11, 2), 0, 7),  # filled
        ((2, 2, 2), 5, 0),  # hit: does not count
    ):
        label[place], predicted[(0, *place)] = truth, found
    batch.tsdf[0, 0, 11, 2, 2] = 0.0
    batch.tsdf[0, 0, 2, 11, 2] = 0.5
    lost = LostVoxels()
    lost.update(predicted, batch)
    groups = lost.groups()
    chair = groups["class"]["chair"]
    assert (chair.occupied, chair.found, chair.lost, chair.right_class) == (3, 2, 1, 1)
    assert groups["class"]["sofa"].lost == 1 and groups["class"]["empty"].filled == 1
    near, two, eight, sixteen = (groups["distance"][f"within {end} cm"] for end in (8, 16, 64, 128))
    assert (near.occupied, near.found) == (1, 1) and (two.occupied, two.found, two.right_class) == (1, 1, 0)
    assert (eight.occupied, eight.found) == (1, 0) and (sixteen.occupied, sixteen.lost) == (1, 1)
    assert groups["visibility"]["outside of the view"].lost == 1
    assert groups["visibility"]["just before a surface"].filled == 1
    assert groups["visibility"]["behind a surface"].occupied == 3
    for aspect in groups.values():
        assert sum(group.occupied for group in aspect.values()) == 4
        assert sum(group.occupied + group.empty for group in aspect.values()) == 12**3 - 1
    assert chair.to_json()["recall"] == pytest.approx(200 / 3)
    text = lost.describe()
    assert "chair" in text and "50.0" in text


def test_slices_are_named_by_their_position(batch: Batch) -> None:
    assert batch.label is not None
    label = batch.label.view(GRID)
    label[5, 0, 3] = 5  # lowest of six parts of two voxels, second from the near edge
    label[5, 11, 11] = 7  # highest and farthest
    lost = LostVoxels()
    lost.update(torch.zeros(1, *GRID, dtype=torch.uint8), batch)
    groups = lost.groups()
    height = {title: group.lost for title, group in groups["height"].items() if group.lost}
    # The grid begins 5 cm below the floor, and a voxel has 8 cm.
    assert height == {"above the floor -0.05 to 0.11 m": 1, "above the floor 0.75 to 0.91 m": 1}
    forward = {title: group.lost for title, group in groups["forward"].items() if group.lost}
    assert forward == {"from the near edge 0.16 to 0.32 m": 1, "from the near edge 0.80 to 0.96 m": 1}
    other = Batch.from_frame(random_frame(1, grid_shape=(12, 24, 12)))
    with pytest.raises(ValueError, match="grid"):
        lost.update(torch.zeros(1, 12, 24, 12, dtype=torch.uint8), other)
