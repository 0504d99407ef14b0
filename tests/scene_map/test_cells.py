"""The sample of a room's surface: bounded, and the same in any order."""

import numpy as np
import pytest

from ammnet_sparse.files.errors import DataError
from ammnet_sparse.scene_map import cells as module
from ammnet_sparse.scene_map.cells import SurfaceCells


def test_the_sample_is_bounded_and_does_not_depend_on_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_CELLS", 500)
    rng = np.random.default_rng(0)
    parts = []
    for _ in range(8):  # a floor of 4 x 4 m
        points = np.append(rng.uniform(-2, 2, (1000, 2)), rng.normal(0.3, 0.005, (1000, 1)), axis=1)
        parts.append((points, np.tile([0.0, 0.0, 1.0], (1000, 1)), rng.uniform(0.4, 5, 1000)))
    found = []
    for order in (range(8), rng.permutation(8)):
        cells = SurfaceCells()
        for part in order:
            points, normals, depth = parts[part]
            cells = cells.with_samples(points, normals, depth=depth)
        found.append(cells.surface())
        assert len(cells) <= 500 and cells.halvings > 0
    for name in ("points", "normals", "areas"):
        np.testing.assert_array_equal(getattr(found[0], name), getattr(found[1], name))
    assert found[0].areas.sum() == pytest.approx(16, rel=0.2)
    assert found[0].points[:, 2].mean() == pytest.approx(0.3, abs=0.001)


def test_edges_are_left_out_and_distant_worlds_named() -> None:
    cells = SurfaceCells().with_samples(np.full((2, 3), 0.01), np.array([[0.0, 0, 1], [1, 0, 0]]), depth=np.ones(2))
    assert len(cells) == 1 and len(cells.surface()) == 0
    with pytest.raises(DataError, match="pose"):
        cells.with_samples(np.full((1, 3), 1e6), np.ones((1, 3)), depth=np.ones(1))
