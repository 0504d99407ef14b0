"""A set for the runs of this folder, and pictures that take no time."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ammnet_sparse.training import records
from tests.training.support import tiny_set


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four training frames and two for validation; not to be changed."""
    return tiny_set(tmp_path_factory.mktemp("set"))


@pytest.fixture(scope="module")
def quick_pictures() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "picture_of", lambda network, batch: np.zeros((4, 4, 3), dtype=np.uint8))
        yield
